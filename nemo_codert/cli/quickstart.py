"""From nothing to a distilled student in one command, on two CPU cores.

    codert quickstart --output-dir quickstart_run

Synthesises a small spoken-command corpus (voices of train, dev and test are disjoint), trains a teacher and, at the
same time, a student alone, then the same student with the teacher, frozen, beside it (strategy static), with equal
updates, and compares the two students on unseen voices. Stock NeMo transcribes with the distilled student in a process
where nemo_codert cannot be imported, and the same test set is transcribed once more with silence around it, at other
levels and as a stream.

Everything goes into the output folder: corpus/, alone/, teacher/ and pair/ (the trainings), alone.log, student.nemo
and student.md (its model card), report.md, learning_curves.png. A second run reuses the corpus and replaces the rest.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nemo_codert.cli.console import fault, quieten_libraries
from nemo_codert.cli.quickstart_report import Findings, StockTexts, write_quickstart_report
from nemo_codert.config.hydra_text import hydra_value

if TYPE_CHECKING:
    from nemo_codert.evaluation.robustness import Recording

CORPUS_SIZES = {"train": 3600, "dev": 60, "test": 100}
VOCABULARY = 96  # BPE pieces
STOCK_FILES = 5
STEPS = 7
RESULTS = ("alone", "alone.log", "teacher", "pair", "student.nemo", "student.md", "report.md", "learning_curves.png")
LINES = 5  # last lines of a failed training's log, which are printed

STOCK_TRANSCRIPTION = """
import json, sys
sys.modules["nemo_codert"] = None  # importing it now raises ImportError: this is stock NeMo
from nemo.utils import logging
logging.setLevel(logging.ERROR)
from nemo.collections.asr.models import ASRModel
model = ASRModel.restore_from(sys.argv[1], map_location="cpu")
texts = [hypothesis.text for hypothesis in model.transcribe(sys.argv[2:], verbose=False)]
print("TEXTS " + json.dumps([type(model).__name__, type(model.joint).__name__, texts]))
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. Anything that fails ends the process with a message."""
    options = parse_arguments(arguments)
    start = time.time()
    folder: Path = options.output_dir
    claim(folder)
    say(1, f"Synthesising speech in {folder / 'corpus'}")
    corpus = prepare_corpus(folder / "corpus", options.seed)
    runs = train_all(corpus, folder, options)
    for name in ("student.nemo", "student.md"):
        shutil.copyfile(runs["pair"] / name, folder / name)
    say(5, "Transcribing with the student in stock NeMo, in a process of its own")
    stock = transcribe_in_stock_nemo(folder / "student.nemo", corpus / "test.json")
    say(6, "Transcribing the test set with silence around it, at other levels and as a stream")
    recordings = transcribe_recordings(folder / "student.nemo", corpus / "test.json")
    say(7, "Writing the report")
    findings = Findings(runs, stock, recordings, minutes=(time.time() - start) / 60)
    print(write_quickstart_report(folder, findings, codert_command()))
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; that of this process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("quickstart_run"))
    parser.add_argument("--max-steps", type=int, default=None, help="optimizer steps (default: conf/quickstart.yaml)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.max_steps is not None and options.max_steps < 1:
        parser.error(f"--max-steps is {options.max_steps}, wanted 1 or more")
    return options


def claim(folder: Path) -> None:
    """Make the output folder, or take the one of an earlier quickstart: its corpus stays, its results are removed."""
    marker = folder / ".quickstart"
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        sys.exit(f"error: --output-dir {folder} holds something else than a quickstart: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in RESULTS:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)


def say(step: int, what: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {step}/{STEPS} {what}", flush=True)


def prepare_corpus(folder: Path, seed: int) -> Path:
    """Synthesise the corpus, or reuse the one that the same sizes and seed made."""
    recipe = {"sizes": CORPUS_SIZES, "seed": seed}
    done = folder / "recipe.json"
    if done.is_file() and json.loads(done.read_text()) == recipe:
        print("The corpus is there already.")
        return folder
    from nemo_codert.data.corpora.synthetic import make_synthetic_corpus

    sizes = {f"{name}_utterances": size for name, size in CORPUS_SIZES.items()}
    try:
        manifests = make_synthetic_corpus(folder, **sizes, vocab_size=VOCABULARY, seed=seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {fault(error)}")
    for name, path in manifests.items():
        durations = [json.loads(line)["duration"] for line in path.read_text().splitlines()]
        print(f"{name:<6} {len(durations):>4} utterances, {sum(durations) / 3600:.2f} hours: {path}")
    done.write_text(json.dumps(recipe))
    return folder


def train_all(corpus: Path, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Train the teacher and, in the background, the student alone; then the student with the teacher.

    Exits with a message where one of them fails, and then ends the other.

    Returns:
        Folder of each run: `alone`, `teacher` and `pair`.
    """
    log, running = folder / "alone.log", {}
    say(2, f"Training the student alone, to compare with (strategy student), in the background: {log}")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with open(log, "wb") as output:
            running["alone"] = start_training(corpus, folder / "alone", "student", options, output=output)
        say(3, "Training the teacher (strategy teacher)")
        running["teacher"] = start_training(corpus, folder / "teacher", "teacher", options)
        wait_for(running, log)
        say(4, "Training the student with the teacher, which stays as it is (strategy static)")
        teacher = hydra_value(run_folder(folder / "teacher") / "teacher.nemo")
        given = [f"model.codert.teacher_checkpoint={teacher}"]
        running["pair"] = start_training(corpus, folder / "pair", "static", options, overrides=given, share=1.0)
        wait_for(running, log)
    finally:
        for process in running.values():
            process.terminate()  # has no effect on a process that has ended
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return {name: run_folder(folder / name) for name in running}


def run_folder(folder: Path) -> Path:
    """Return the folder of the one run in a training's folder."""
    return next(folder.glob("quickstart/2*/config.yaml")).parent


def start_training(
    corpus: Path,
    folder: Path,
    strategy: str,
    options: argparse.Namespace,
    *,
    output: IO[bytes] | None = None,
    overrides: Sequence[str] = (),
    share: float = 0.5,
) -> subprocess.Popen:
    """Start a training in a process of its own. A student's transcribes the test set at its end.

    Args:
        corpus: made by `prepare_corpus`. folder: of the training, new.
        strategy: of conf/strategy. options: of the command line.
        output: file for what the training prints, by default that of this process.
        overrides: more of the config. share: of the cores, for its threads.
    """
    sets = {"train_ds": "train", "validation_ds": "dev"} | ({"test_ds": "test"} if strategy != "teacher" else {})
    overrides = [
        f"strategy={strategy}",
        *(f"model.{name}.manifest_filepath={hydra_value(corpus / f'{file}.json')}" for name, file in sets.items()),
        f"model.tokenizer.dir={hydra_value(corpus / 'tokenizer')}",
        f"exp_manager.exp_dir={hydra_value(folder)}",
        f"seed={options.seed}",
        *overrides,
    ]
    if options.max_steps:
        overrides += [f"trainer.max_steps={options.max_steps}", f"trainer.val_check_interval={options.max_steps}"]
    # Training sets seeds, log levels and the allocator of its whole process.
    command = [sys.executable, "-m", "nemo_codert.cli.train", "--config-name=quickstart", *overrides]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(int(cores * share), 1)), **os.environ}
    return subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT, env=environment)


def wait_for(running: Mapping[str, subprocess.Popen], log: Path) -> None:
    """Wait until all trainings have ended; exit with a message as soon as one fails.

    Args:
        running: trainings by the name of their folder. log: of `alone`.
    """
    while True:
        ended = all([process.poll() is not None for process in running.values()])
        for name, process in running.items():
            if process.returncode:
                last = (
                    log.read_text(errors="replace").replace("\r", "\n").splitlines()[-LINES:]
                    if name == "alone"
                    else []
                )
                where = (
                    f" (all of it: {log}):" + "".join(f"\n  {line}" for line in last)
                    if last
                    else ", see its message above."
                )
                sys.exit(f"The training {name} failed with exit status {process.returncode}{where}")
        if ended:
            return
        time.sleep(0.5)


def transcribe_recordings(model: Path, manifest: Path) -> "list[Recording]":
    """Transcribe the test set as it is and recorded otherwise."""
    quieten_libraries()
    from nemo_codert.evaluation.robustness import check_recordings
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import open_model

    return check_recordings(open_model(model), model, usable_entries(manifest))


def codert_command() -> str:
    """Return the way to call the command: its name, or its path where the folder of this Python is not searched."""
    if shutil.which("codert"):
        return "codert"
    beside = Path(sys.executable).with_name("codert")
    return (
        os.path.relpath(beside) if beside.is_file() else f"{os.path.relpath(sys.executable)} -m nemo_codert.cli.main"
    )


def transcribe_in_stock_nemo(model: Path, manifest: Path) -> StockTexts:
    """Transcribe the first test files with stock NeMo; nemo_codert is blocked in that process."""
    entries = [json.loads(line) for line in manifest.read_text().splitlines()[:STOCK_FILES]]
    files = [str(manifest.parent / entry["audio_filepath"]) for entry in entries]
    command = [sys.executable, "-c", STOCK_TRANSCRIPTION, str(model), *files]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("TEXTS ")]
    if finished.returncode or not lines:
        sys.exit(f"Stock NeMo could not transcribe with {model}:\n{finished.stderr[-2000:]}")
    name, joint, texts = json.loads(lines[0].removeprefix("TEXTS "))
    print(f"{name} with {joint}:")
    for entry, text in zip(entries, texts, strict=True):
        print(f"  reference:  {entry['text']}\n  transcript: {text}")
    return StockTexts(name, joint, [(entry["text"], text) for entry, text in zip(entries, texts, strict=True)])


if __name__ == "__main__":
    sys.exit(main())
