"""Takes the place of `codert train` and `codert cache` in tests of comparisons: writes their files without NeMo.

Behaves as the file `stub.json` beside the data says: {"fail": [cells], "hang": [cells], "deaf": hanging ones cannot
be asked to end, "updates": N}, a cell being "fold/strategy/seed". Every start is a line of `starts.txt` beside it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ERROR_RATES = {"student": 0.2, "tandem_kd": 0.1, "shared_kd": 0.19, "static": 0.1, "teacher": 0.05}


def values(arguments: list[str]) -> dict[str, str]:
    pairs = (argument.lstrip("+").split("=", 1) for argument in arguments)
    return {key: value.strip("'") for key, value in pairs}


def spoken(text: str, rate: float, key: str) -> str:
    """The text without those words that chance, seeded by `key`, takes away."""
    chance = random.Random(key)
    return " ".join(word for word in text.split() if chance.random() > rate)


def write_predictions(given: dict[str, str], run: Path, strategy: str, updates: int) -> None:
    manifests = [path.strip("'") for path in given["model.test_ds.manifest_filepath"].strip("[]").split(",")]
    branches = {"student": ["student"], "teacher": ["teacher"]}.get(strategy, ["student", "teacher"])
    for branch in branches:
        folder = run / "predictions" / branch
        folder.mkdir(parents=True)
        rate = ERROR_RATES.get("teacher" if branch == "teacher" else strategy, 0.15)
        for manifest in map(Path, manifests):
            lines = [json.loads(line) for line in manifest.read_text().splitlines()]
            for place, line in enumerate(lines):
                line["audio_filepath"] = str((manifest.parent / line["audio_filepath"]).resolve())
                line["pred_text"] = spoken(line["text"], rate, f"{branch}{strategy}{given['seed']}{place}")
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / manifest.name).write_text(text)
            about = {"updates": updates, "trained_parameters": {"student": 400, "teacher": 2200}[branch]}
            (folder / f"{manifest.stem}_summary.json").write_text(json.dumps(about) + "\n")


def store_targets(words: list[str]) -> int:
    """Make the folder of targets, with the name of the manifest that the teacher gets."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    if not Path(given["--teachers"]).is_file():
        sys.exit(f"no such file: {given['--teachers']}")
    Path(given["--output"]).mkdir()
    (Path(given["--output"]) / "header.json").write_text(given["--manifest"])
    print("storing targets of", Path(given["--manifest"]).name, flush=True)
    return 0


def main() -> int:
    if sys.argv[1] == "--teachers":
        return store_targets(sys.argv[1:])
    given = values(sys.argv[1:])
    strategy, root = given["exp_manager.name"], Path(given["exp_manager.exp_dir"])
    fold = root.parent.name
    name = f"{fold}/{strategy}/{given['seed']}"
    data = Path(os.environ["STUB_DIR"])
    behaviour = json.loads((data / "stub.json").read_text()) if (data / "stub.json").is_file() else {}
    with (data / "starts.txt").open("a") as file:
        file.write(name + "\n")
    print(f"training {name} with {os.environ['OMP_NUM_THREADS']} threads", flush=True)
    if name in behaviour.get("fail", ()):
        sys.exit("the loss is not finite")
    if name in behaviour.get("hang", ()):
        if behaviour.get("deaf"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (data / "hanging").touch()
        time.sleep(600)
    run = root / given["exp_manager.name"] / given["exp_manager.version"]
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").touch()
    (run / ("teacher.nemo" if strategy == "teacher" else "student.nemo")).touch()
    teacher = given.get("model.codert.teacher_checkpoint")
    if teacher and not Path(teacher).is_file():
        sys.exit(f"no such file: {teacher}")
    targets = given.get("model.codert.teacher_cache")
    if targets and not (Path(targets) / "header.json").is_file():
        sys.exit(f"no targets: {targets}")
    updates = behaviour.get("updates", int(given["trainer.max_steps"]))
    write_predictions(given, run, strategy, updates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
