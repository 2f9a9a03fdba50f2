"""Transcribe as a stream, in NeMo's own streaming pipelines (nemo.collections.asr.inference).

    python scripts/transcribe_streaming.py --model student.nemo --manifest data/fsdd/test_seen.json
    python scripts/transcribe_streaming.py --model student.nemo --audio a.wav b.wav --set streaming.chunk_size=0.8
    python scripts/transcribe_streaming.py --model student.nemo --manifest test.json --pipeline cache_aware

--pipeline: buffered (any Conformer RNN-T: audio in chunks, each encoded anew with its surroundings) or cache_aware
(one trained for it: no frame is encoded twice). Their settings are conf/inference/*_rnnt.yaml; --set KEY=VALUE changes
them, --config FILE replaces the file. Sample rate and word pieces a frame are the model's; a GPU is used if there is
one.

Prints the texts and, of a manifest with transcripts, errors and WER, beside the real-time factor: seconds of the whole
run (reading files, features, encoder, decoding; not loading the model) per second of audio, the audio coming as fast
as it is taken. --output writes the manifest's lines with `pred_text` added, and NAME_summary.json.

Exit status 2: bad options, files or data, or a model that the pipeline cannot run; the message says what to change.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from nemo_codert.cli import console

SETTINGS = Path(__file__).resolve().parents[2] / "conf" / "inference"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="M.nemo")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, metavar="TEST.json")
    source.add_argument("--audio", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--pipeline", choices=["buffered", "cache_aware"], default="buffered")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path, metavar="PIPELINE.yaml")
    parser.add_argument("--output", type=Path, metavar="PREDICTIONS.json")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Mistakes that can be known before NeMo is imported.

    Raises:
        ValueError: a file that is missing, an output that would replace the manifest, a change without a value.
    """
    files = {"--model": options.model, "--manifest": options.manifest, "--config": options.config}
    for option, path in files.items():
        if path is not None and not path.is_file():
            raise ValueError(f"{option} is {path}: no such file")
    if options.output is not None and options.output.is_dir():
        raise ValueError(f"--output is {options.output}: that is a folder, give a file name")
    if options.output is not None and options.manifest is not None:
        if options.output.resolve() == options.manifest.resolve():
            raise ValueError(f"--output is --manifest itself ({options.manifest}): give another name")
    for change in options.set:
        if "=" not in change:
            raise ValueError(f"--set {change}: wanted KEY=VALUE, such as streaming.chunk_size=0.8")


def utterances(options: argparse.Namespace, sample_rate: int) -> list[dict[str, Any]]:
    """Entries of the manifest, or one without a transcript for each audio file.

    Raises:
        ValueError: as `usable_entries`.
    """
    import soundfile

    from nemo_codert.data.audio_files import inspect
    from nemo_codert.data.manifest import write_manifest
    from nemo_codert.evaluation.transcribe import usable_entries

    if options.manifest is not None:
        return usable_entries(options.manifest, sample_rate)
    for path in options.audio:
        if fault := inspect(str(path)).fault:
            raise ValueError(f"--audio is {path}: {fault}")
    lines = [
        {"audio_filepath": str(path.resolve()), "duration": soundfile.info(str(path)).duration, "text": ""}
        for path in options.audio
    ]
    with tempfile.TemporaryDirectory(prefix="nemo_codert_audio_") as folder:
        return usable_entries(write_manifest(Path(folder) / "audio.json", lines), sample_rate)


def run(options: argparse.Namespace) -> None:
    """Build the pipeline, play the audio, print what was heard."""
    check_options(options)
    console.quieten_libraries()
    import torch
    from omegaconf import OmegaConf

    from nemo_codert.evaluation.streaming import build_pipeline, pipeline_config, refuse_unfit, stream
    from nemo_codert.evaluation.transcribe import write_predictions
    from nemo_codert.models.teacher_weights import restored_config

    model_cfg = restored_config(options.model, str(options.model))
    cfg = pipeline_config(
        SETTINGS / f"{options.pipeline}_rnnt.yaml",
        options.model,
        model_cfg,
        device="cuda" if torch.cuda.is_available() else "cpu",
        own=options.config,
        changes=options.set,
    )
    refuse_unfit(cfg, model_cfg)
    entries = utterances(options, cfg.streaming.sample_rate)
    evaluation = stream(build_pipeline(cfg), entries, str(options.manifest or "audio"))
    report(evaluation)
    if options.output is not None:
        about = {
            "model": str(options.model),
            "pipeline": options.pipeline,
            "settings": OmegaConf.to_container(cfg.streaming),
        }
        for path in write_predictions(options.output, [evaluation], about):
            print(f"wrote {path}")


def report(evaluation: Any) -> None:
    """Print the texts, then errors and speed."""
    for line in evaluation.predictions:
        print(f"{Path(line['audio_filepath']).name}: {line['pred_text']}")
    errors = evaluation.errors
    if errors.words:
        print(
            f"WER {errors.wer:.2%} of {errors.words} words ({errors.substitutions} substitutions, "
            f"{errors.insertions} insertions, {errors.deletions} deletions)"
        )
    print(f"{evaluation.audio_seconds:.1f} s of audio, real-time factor {evaluation.real_time_factor:.4f}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: run(options))
