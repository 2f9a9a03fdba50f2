"""A corpus with every fault that data can have, beside utterances that have none, and what should come of it."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from nemo_codert.data import Reason
from nemo_codert.data.data_report import LOW_RATE, UNSPELLED
from nemo_codert.data.manifest import LineFault
from nemo_codert.data.screening import Notice
from tests.conftest import SAMPLE_RATE, SENTENCES, tone

GOOD = 12
BELOW, ABOVE = f"{Reason.BELOW_MINIMUM} of 0.1 s", f"{Reason.ABOVE_MAXIMUM} of 20.0 s"
BAD_LINES = {
    b"{": LineFault.NOT_JSON,
    b'{"audio_filepath": "0.wav", "duration": 1.0,': LineFault.NOT_JSON,
    b"[1, 2]": LineFault.NO_OBJECT,
    b'{"audio_filepath": "0.wav", "text": "stop"}': LineFault.NO_FIELD,
    b'{"audio_filepath": "0.wav", "duration": "1.0", "text": "stop"}': LineFault.WRONG_TYPE,
    b'{"audio_filepath": "0.wav", "duration": NaN, "text": "stop"}': LineFault.WRONG_TYPE,
    b'{"audio_filepath": "0.wav", "duration": 1.0, "text": null}': LineFault.WRONG_TYPE,
    b'{"audio_filepath": "0.wav", "duration": 1.0, "text": "caf\xe9"}': LineFault.NOT_UTF8,
}


@dataclass
class Corpus:
    """Lines of a manifest and the number of each outcome for one loader: dropped, left out, noticed."""

    folder: Path
    lhotse: bool
    lines: list[bytes] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)
    noticed: Counter = field(default_factory=Counter)

    def add(self, name: str, text: str = "turn the light on", seconds: float = 1.5, **keys: object) -> None:
        line = {"audio_filepath": name, "duration": seconds, "text": text, **keys}
        self.lines.append(json.dumps(line).encode())

    def write(self) -> Path:
        """The manifest with a byte order mark, CRLF line ends and blank lines."""
        path = self.folder / "train.json"
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([b"", *self.lines, b" ", b""]))
        return path

    @property
    def faults(self) -> int:
        """Number of faults injected."""
        return sum(map(Counter.total, (self.dropped, self.left_out, self.noticed))) + 3  # mark, CRLF, blank lines


def dirty_corpus(folder: Path, *, lhotse: bool) -> Corpus:
    """Writes the audio and returns what the manifest holds."""
    corpus = Corpus(folder, lhotse)
    for i in range(GOOD):
        sound(folder / f"{i}.wav", seed=i)
        corpus.add(f"{i}.wav", SENTENCES[i % len(SENTENCES)])
    add_unusable_audio(corpus)
    add_odd_audio(corpus)
    add_odd_lines(corpus)
    for line, reason in BAD_LINES.items():
        corpus.lines.insert(len(corpus.lines) // 2, line)
        corpus.dropped[reason] += 1
    return corpus


def sound(path: Path, seconds: float = 1.5, seed: int = 99, rate: int = SAMPLE_RATE, **how: str) -> np.ndarray:
    samples = tone(seconds, seed)[:: SAMPLE_RATE // rate]
    soundfile.write(path, samples, rate, **how)
    return samples


def add_unusable_audio(corpus: Corpus) -> None:
    """Files that cannot be trained on."""
    folder = corpus.folder
    for kind in ("flac", "wav"):
        sound(folder / f"cut.{kind}")
        content = (folder / f"cut.{kind}").read_bytes()
        half = len(content) // 2
        (folder / f"cut.{kind}").write_bytes(content[:half])
        if kind == "flac":  # whose frames have a checksum
            (folder / "damaged.flac").write_bytes(content[:half] + bytes(1500) + content[half + 1500 :])
    (folder / "zero.wav").write_bytes(b"")
    soundfile.write(folder / "no_samples.wav", np.zeros(0), SAMPLE_RATE)
    (folder / "text.wav").write_bytes(b"this is no audio")
    soundfile.write(folder / "silent.wav", np.zeros(int(1.5 * SAMPLE_RATE)), SAMPLE_RATE)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        samples = tone(1.5, seed=98)
        samples[10_000] = value
        soundfile.write(folder / f"{name}.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    expected = {
        "cut.flac": Reason.BREAKS_OFF,
        "damaged.flac": Reason.DAMAGED,
        "cut.wav": Reason.TOO_LONG_DURATION,
        "zero.wav": Reason.EMPTY_AUDIO,
        "no_samples.wav": Reason.EMPTY_AUDIO,
        "text.wav": Reason.UNREADABLE,
        "gone.wav": Reason.MISSING,
        "silent.wav": Reason.SILENT,
        "nan.wav": Reason.NOT_FINITE,
        "inf.wav": Reason.NOT_FINITE,
    }
    for name, reason in expected.items():
        corpus.add(name)
        corpus.dropped[reason] += 1


def add_odd_audio(corpus: Corpus) -> None:
    """Files that are usable, or not, depending on loader and limits."""
    folder = corpus.folder
    sound(folder / "low.wav", rate=8000)
    corpus.add("low.wav")
    corpus.noticed[LOW_RATE] += 1
    soundfile.write(folder / "clipped.wav", np.clip(30 * tone(1.5, seed=97), -1, 1), SAMPLE_RATE)
    corpus.add("clipped.wav")
    corpus.noticed[Notice.CLIPPED] += 1
    soundfile.write(folder / "stereo.wav", np.stack([tone(1.5, seed=96)] * 2, axis=1), SAMPLE_RATE)
    corpus.add("stereo.wav")
    sound(folder / "rate.wav", seed=95)
    corpus.add("rate.wav", sampling_rate=8000)
    corpus.dropped[Reason.WRONG_RATE if corpus.lhotse else Reason.SEVERAL_CHANNELS] += 1
    for name, seconds, reason in (("short.wav", 0.05, BELOW), ("long.wav", 60.0, ABOVE)):
        sound(folder / name, seconds)
        corpus.add(name, seconds=seconds)
        corpus.left_out[reason] += 1


def add_odd_lines(corpus: Corpus) -> None:
    """Lines about sound audio whose transcripts, ids or neighbours are at fault."""
    for i, seed in enumerate(range(80, 92)):
        sound(corpus.folder / f"line_{i}.wav", seed=seed)
    corpus.add("line_0.wav", " ")
    corpus.dropped[Reason.EMPTY_TEXT] += 1
    corpus.add("line_1.wav", "turn the light on " * 20)
    corpus.dropped[Reason.TOO_LONG_TEXT] += 1
    corpus.add("line_2.wav", "play the NEXT song")
    corpus.noticed[UNSPELLED] += 1
    corpus.add("line_3.wav"), corpus.add("line_3.wav")
    corpus.noticed[Notice.REPEATED] += 1
    corpus.add("line_4.wav", "stop the music please"), corpus.add("line_4.wav", "call ken in the shed")
    corpus.dropped[Reason.CONTRADICTION] += 2
    corpus.add("line_5.wav", id="u1"), corpus.add("line_6.wav", id="u1")
    corpus.noticed[Notice.SAME_ID] += 1
    corpus.add("line_7.wav", seconds=9.0)
    corpus.dropped[Reason.TOO_LONG_DURATION] += 1
    corpus.add("line_8.wav", offset=1.4, seconds=1.5)
    corpus.dropped[Reason.TOO_LONG_DURATION] += 1
    corpus.add("line_9.wav", _skipme=True)
    if corpus.lhotse:
        corpus.left_out[Reason.SKIPPED] += 1
