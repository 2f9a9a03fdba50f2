"""The embedded corpus: synthetic English commands, made on the spot, so that everything runs without a download.

Voices of train, dev and test are disjoint; rate, pitch, level and noise vary by utterance.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance, resample, write_set
from nemo_codert.data.corpora.espeak import Espeak
from nemo_codert.data.corpora.noise import noise_level, pink_noise
from nemo_codert.data.corpora.sentences import training_sentences, unseen_sentences
from nemo_codert.data.corpora.variety import varied as with_variety
from nemo_codert.data.tokenizer import train_tokenizer

# accent+variant of espeak-ng. No variant (the voice's timbre) is in two sets; accents are.
VOICES: dict[str, tuple[str, ...]] = {
    "train": (
        "en-US+f1", "en+f2", "en-US+f5", "en-GB-scotland+aunty", "en+belinda", "en-US+Annie", "en-GB-x-rp+linda",
        "en-US+m1", "en+m3", "en-GB-scotland+m2", "en-GB-x-rp+m4", "en-US+m7", "en+Alex", "en-US+adam",
        "en-US-nyc+robert", "en-US+Michael", "en+boris", "en-GB-x-rp+quincy", "en-US+klatt6", "en+travis",
    ),
    "dev": ("en+f3", "en-US+m6", "en-GB-x-rp+max", "en-US+edward"),
    "test": ("en-US+f4", "en-GB-x-rp+grandma", "en+m5", "en-US+Mario", "en-US+benjamin", "en-GB-scotland+rob"),
}  # fmt: skip

WORDS_PER_MINUTE = (115, 170)
PITCH = (35, 65)  # espeak's scale, 50 is the voice's own
PEAK = (0.2, 0.8)  # full scale 1
SIGNAL_TO_NOISE = (15.0, 35.0)  # dB, measured over the speech between its silences
# Training utterances: edges longer than those of dev and test, rooms above the noise of the recording, levels that
# leave a PEAK below full scale.
VARIETY = {"room": (2e-4, 5e-3), "edged": 0.65, "edges": ("zeros", "room", "room"), "level": (-20.0, 1.5)}
EDGE_SECONDS = (0.05, 0.25)  # silence (with noise) before and after the speech
SHORTEST_SECONDS = 1.2
SPEECH_THRESHOLD = 1e-3  # espeak's silences are exact zeros but for the tail of an echo


def make_synthetic_corpus(
    output_dir: str | Path,
    *,
    train_utterances: int = 600,
    dev_utterances: int = 60,
    test_utterances: int = 100,
    varied: bool = True,
    vocab_size: int = 96,
    seed: int = 0,
) -> dict[str, Path]:
    """Write sets `train`, `dev`, `test` (16 kHz, 16 bit) and `tokenizer/`; return the manifests by set name.

    Dev and test sentences are new but have only words of the training set. Train has long silent edges, more noise,
    other speeds and levels (`nemo_codert.data.corpora.variety`), unless `varied` is false. Equal arguments give equal
    files.

    Raises ValueError for counts below 1 and for a vocab_size that the training sentences cannot support.
    """
    counts = {"train": train_utterances, "dev": dev_utterances, "test": test_utterances}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}_utterances is {count}: want 1 or more.")
    sentences = choose_sentences(counts, seed)
    # The tokenizer comes first: its training is quick and the one step that can fail.
    train_tokenizer(sentences["train"], Path(output_dir) / "tokenizer", vocab_size)
    manifests = {}
    for name, texts in sentences.items():
        spoken = speak(name, texts, seed)
        if varied and name == "train":
            spoken = with_variety(spoken, np.random.default_rng([seed, len(VOICES)]), **VARIETY)
        manifests[name] = write_set(Path(output_dir), name, spoken, total=len(texts))
    return manifests


def choose_sentences(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Choose the sentences of each set; dev and test have new sentences of training words, none of them in both."""
    train = training_sentences(counts["train"], random.Random(f"train {seed}"))
    new = unseen_sentences(counts["dev"] + counts["test"], train, random.Random(f"unseen {seed}"))
    return {"train": train, "dev": new[: counts["dev"]], "test": new[counts["dev"] :]}


def speak(set_name: str, texts: list[str], seed: int) -> Iterator[Utterance]:
    """Yield the utterances of `texts` in turn, by the voices of that set."""
    generator = np.random.default_rng([seed, list(VOICES).index(set_name)])
    synthesiser = Espeak(seed)
    try:
        for voice in VOICES[set_name]:
            synthesiser.check_voice(voice)
        for text in texts:
            voice = str(generator.choice(VOICES[set_name]))
            yield Utterance(samples=_record(synthesiser, text, voice, generator), text=text, speaker=voice)
    finally:
        synthesiser.close()


def _record(synthesiser: Espeak, text: str, voice: str, generator: np.random.Generator) -> np.ndarray:
    """Return [S] float32 at SAMPLE_RATE: speech between two silences, noise over all of it."""
    raw = synthesiser.say(
        text,
        voice=voice,
        words_per_minute=int(generator.integers(*WORDS_PER_MINUTE, endpoint=True)),
        pitch=int(generator.integers(*PITCH, endpoint=True)),
    )
    speech = _trim(resample(raw, synthesiser.sample_rate))
    before, after = (int(seconds * SAMPLE_RATE) for seconds in generator.uniform(*EDGE_SECONDS, size=2))
    after = max(after, int(SHORTEST_SECONDS * SAMPLE_RATE) - before - len(speech))
    level = noise_level(speech, generator.uniform(*SIGNAL_TO_NOISE))
    samples = np.pad(speech, (before, after))
    samples = samples + level * pink_noise(len(samples), generator)
    return (samples * (generator.uniform(*PEAK) / np.abs(samples).max())).astype(np.float32)


def _trim(samples: np.ndarray) -> np.ndarray:
    """Remove espeak's silence before and after the speech."""
    loud = np.flatnonzero(np.abs(samples) > SPEECH_THRESHOLD)
    assert len(loud), "espeak gave only silence"
    return samples[loud[0] : loud[-1] + 1]
