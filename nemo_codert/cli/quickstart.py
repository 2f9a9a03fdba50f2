"""From nothing to a distilled student in one command, on two CPU cores.

    codert quickstart --output-dir quickstart_run

Synthesises a small spoken-command corpus (voices of train, dev and test are disjoint), trains a teacher and a student
that share their prediction network with in-place distillation, evaluates both on unseen voices, exports the student
and lets stock NeMo transcribe with it in a process where nemo_codert cannot be imported.

Everything goes into the output folder: corpus/, training/, student.nemo, report.md, learning_curves.png,
predictions.json. A second run reuses the corpus and replaces the rest.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nemo_codert.cli.console import fault
from nemo_codert.config.hydra_text import hydra_value

CORPUS_SIZES = {"train": 900, "dev": 60, "test": 100}
VOCABULARY = 96  # BPE pieces
STOCK_FILES = 5

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
    say(2, "Training teacher and student together (strategy shared_kd)")
    run = train(corpus, folder / "training", options)
    say(3, "Evaluating both on unseen voices")
    results = evaluate_branches(run, corpus / "test.json", folder)
    say(4, "Exporting the student and transcribing with it in stock NeMo, in a process of its own")
    shutil.copyfile(run / "student.nemo", folder / "student.nemo")
    stock = transcribe_in_stock_nemo(folder / "student.nemo", corpus / "test.json")
    say(5, "Writing the report")
    write_quickstart_report(folder, run, results, stock, minutes=(time.time() - start) / 60)
    print(table(results))
    print(f"\nStudent:  {folder / 'student.nemo'}\nReport:   {folder / 'report.md'}")
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
    """Make the output folder, or take the one of an earlier quickstart: parts of it are replaced."""
    marker = folder / ".quickstart"
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        sys.exit(f"error: --output-dir {folder} holds something else than a quickstart: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def say(step: int, what: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {step}/5 {what}", flush=True)


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


def train(corpus: Path, folder: Path, options: argparse.Namespace) -> Path:
    """Train the pair in a process of its own and return the folder of the run."""
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [
        f"model.train_ds.manifest_filepath={hydra_value(corpus / 'train.json')}",
        f"model.validation_ds.manifest_filepath={hydra_value(corpus / 'dev.json')}",
        f"model.tokenizer.dir={hydra_value(corpus / 'tokenizer')}",
        f"exp_manager.exp_dir={hydra_value(folder)}",
        f"seed={options.seed}",
    ]
    if options.max_steps:
        overrides += [f"trainer.max_steps={options.max_steps}", f"trainer.val_check_interval={options.max_steps}"]
    # Training sets seeds, log levels and the allocator of its whole process.
    command = [sys.executable, "-m", "nemo_codert.cli.train", "--config-name=quickstart", "strategy=shared_kd"]
    finished = subprocess.run([*command, *overrides], check=False)
    if finished.returncode:
        sys.exit(f"The training failed with exit status {finished.returncode}: see its message above.")
    return next(folder.glob("quickstart/2*/student.nemo")).parent


def evaluate_branches(run: Path, manifest: Path, folder: Path) -> list[dict[str, object]]:
    """Measure WER, size and speed of the student and the teacher, both as stock models; keep the student's texts."""
    from nemo_codert.cli.console import quieten_libraries

    quieten_libraries()
    from nemo_codert.evaluation.transcribe import evaluate, write_predictions
    from nemo_codert.export.stock_file import stock_of
    from nemo_codert.models.open_model import open_model

    pair = open_model(run / "pair.nemo")
    results = []
    for branch in ("student", "teacher"):
        model = stock_of(pair, branch=branch)
        evaluation = evaluate(model, manifest)
        results.append(
            {
                "branch": branch,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "wer": evaluation.errors.wer,
                "words": evaluation.errors.words,
                "real_time_factor": evaluation.real_time_factor,
            }
        )
        if branch == "student":
            write_predictions(folder / "predictions.json", [evaluation], {"model": "student.nemo"})
    return results


def transcribe_in_stock_nemo(model: Path, manifest: Path) -> dict[str, object]:
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
    return {"model": name, "joint": joint, "pairs": [[e["text"], t] for e, t in zip(entries, texts, strict=True)]}


def table(results: list[dict[str, object]]) -> str:
    """Return the results as a Markdown table, which also reads well in a terminal."""
    lines = [
        "| branch  | parameters | test WER | real-time factor |",
        "|---------|-----------:|---------:|-----------------:|",
    ]
    for row in results:
        lines.append(
            f"| {row['branch']:7} | {row['parameters']:>10,} | {row['wer']:>8.1%} | {row['real_time_factor']:>16.3f} |"
        )
    return "\n".join(lines)


def write_quickstart_report(
    folder: Path, run: Path, results: list[dict[str, object]], stock: dict[str, object], minutes: float
) -> None:
    """Write report.md with the table, the curves as a picture and the texts of stock NeMo."""
    from nemo_codert.evaluation.learning_curves import plot_curves, read_curves

    plot_curves(read_curves(run), folder / "learning_curves.png")
    texts = "\n".join(f"| {reference} | {text} |" for reference, text in stock["pairs"])
    report = f"""# Quickstart: a student distilled in place

Teacher and student were trained together in {minutes:.1f} minutes (corpus, training and evaluation), sharing their
prediction network, on {CORPUS_SIZES["train"]} synthetic utterances. The test set has {CORPUS_SIZES["test"]} utterances
({results[0]["words"]} words) by voices that are not in the training set. The real-time factor is that of a whole
`transcribe` call, one second of audio taking that many seconds.

{table(results)}

![Learning curves](learning_curves.png)

## In stock NeMo

`student.nemo` restored as `{stock["model"]}` with `{stock["joint"]}`, in a process where `nemo_codert` cannot be
imported:

| reference | transcript |
|-----------|------------|
{texts}
"""
    (folder / "report.md").write_text(report)


if __name__ == "__main__":
    sys.exit(main())
