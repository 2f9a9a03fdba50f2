"""Corpora for tests of comparisons: manifests without audio, and a tokenizer file that nobody reads."""

import json
import random
from pathlib import Path

WORDS = "zero one two three four five six seven eight nine".split()


def write_corpus(folder: Path, *, speakers: dict[str, list[str]] | None = None, utterances: int = 40) -> Path:
    """A corpus with the test sets `speakers` names (name -> speakers in turn), five words an utterance."""
    chance = random.Random(str(folder.name))
    sets = {"train": ["x"], "dev": ["x"], **(speakers or {"test_seen": ["ann", "bob"], "test_unseen": ["eve"]})}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_text("pieces")
    for name, own in sets.items():
        lines = [
            {
                "audio_filepath": f"audio/{name}/{place:03d}.wav",
                "duration": 3.0,
                "text": " ".join(chance.choices(WORDS, k=5)),
                "speaker": own[place % len(own)],
            }
            for place in range(utterances)
        ]
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
