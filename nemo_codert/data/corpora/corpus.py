"""The corpus folder that all recipes write: `audio/<set>/*.wav`, `<set>.json`, `tokenizer/`.

Imports soundfile, soxr and tqdm only, neither torch nor NeMo.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm.auto import tqdm

from nemo_codert.data.manifest import write_manifest
from nemo_codert.files.atomic import whole_file

SAMPLE_RATE = 16_000  # Hz, expected by NeMo's stock preprocessors


@dataclass(frozen=True)
class Utterance:
    """One utterance to be written.

    Args:
        samples: [S] float32 in -1..1 at SAMPLE_RATE.
        text: transcript.
        speaker: name or number of the speaker.
        utterance_id: joins utterances of different sets; None for the stem of the audio file.
    """

    samples: np.ndarray
    text: str
    speaker: str
    utterance_id: str | None = None


def resample(samples: np.ndarray, rate: int, wanted: int = SAMPLE_RATE) -> np.ndarray:
    """Resample [S] at `rate` Hz to [S'] float32 at `wanted` Hz."""
    return soxr.resample(samples.astype(np.float32), rate, wanted) if rate != wanted else samples


def write_set(output_dir: Path, name: str, utterances: Iterable[Utterance], *, total: int) -> Path:
    """Write `audio/<name>/*.wav` (16 kHz, 16 bit), then `<name>.json` (paths relative to it); return the manifest.

    Everything is replaced file by file; wav files of an earlier run that the new manifest lacks are removed last.
    """
    folder = Path(output_dir) / "audio" / name
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, utterance in enumerate(tqdm(utterances, desc=name, total=total, unit="utt", mininterval=1.0)):
        file_name = f"{name}_{number:06d}.wav"
        write_wav(folder / file_name, utterance.samples)
        entries.append(_entry(f"audio/{name}/{file_name}", utterance))
    manifest = write_manifest(Path(output_dir) / f"{name}.json", entries)
    kept = {Path(entry["audio_filepath"]).name for entry in entries}
    for stale in folder.glob(f"{name}_*.wav"):
        if stale.name not in kept:
            stale.unlink()
    return manifest


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write [S] float in -1..1 as 16-bit wav at SAMPLE_RATE; nothing half-written is left under the final name."""
    with whole_file(path) as temporary:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def _entry(audio_filepath: str, utterance: Utterance) -> dict[str, Any]:
    return {
        "audio_filepath": audio_filepath,
        "duration": round(len(utterance.samples) / SAMPLE_RATE, 4),
        "text": utterance.text,
        "speaker": utterance.speaker,
        "utterance_id": utterance.utterance_id or Path(audio_filepath).stem,
    }
