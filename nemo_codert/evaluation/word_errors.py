"""Word errors: substitutions, insertions and deletions of a hypothesis against its reference, and their sums.

A word error rate is always summed errors over summed reference words, never a mean of rates. A model with `use_cer` is
measured in characters, as in NeMo's validation. Imports kaldialign and data/normalisation.py only.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import kaldialign

from nemo_codert.data.normalisation import composed

GAP = "\0"  # stands for no word in an alignment; no text has it
WER, CER = "WER", "CER"
UNITS = {WER: "words", CER: "characters"}


def metric_of(cfg: Mapping[str, Any]) -> str:
    """Return the metric of a model: CER where its config has `use_cer`, as validation counts, else WER.

    Args:
        cfg: a model's config.

    Example:
        >>> metric_of({"use_cer": True}), metric_of({})
        ('CER', 'WER')
    """
    return CER if cfg.get("use_cer") else WER


def score_text(name: str, value: float) -> str:
    """Return the value of a logged metric as it is printed: an error rate in percent, any other as it is.

    Args:
        name: by which it is logged. value: an error rate is a share.

    Example:
        >>> score_text("val_wer", 0.1234), score_text("dev_other_val_wer_teacher", 1), score_text("val_loss", 12.5)
        ('12.34%', '100.00%', '12.5000')
    """
    return f"{value:.2%}" if is_rate(name) else f"{value:.4f}"


def is_rate(name: str) -> bool:
    """Return whether a logged metric is an error rate, which is logged as a share.

    Example:
        >>> is_rate("val_wer_teacher"), is_rate("val_wer_num"), is_rate("train_loss")
        (True, False, False)
    """
    return name.removesuffix("_teacher").endswith("_wer")


def units(text: str, metric: str = WER) -> list[str]:
    """Return what is counted in a text: its words, or its characters with one blank between words.

    Args:
        text: any text. metric: `WER` or `CER`.

    Example:
        >>> units("on  it"), units("on  it", CER)
        (['on', 'it'], ['o', 'n', ' ', 'i', 't'])
    """
    words = composed(text).split()
    return list(" ".join(words)) if metric == CER else words


@dataclass(frozen=True)
class WordErrors:
    """Counts of one utterance or of many; instances can be added.

    Args:
        substitutions, insertions, deletions: errors by kind.
        words: reference words; characters where these are counted.

    Example:
        >>> total = WordErrors(substitutions=1, words=4) + WordErrors(words=6)
        >>> total.errors, total.wer
        (1, 0.1)
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        """Number of all errors."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def wer(self) -> float:
        """Errors per reference word, 0.0 and up; without any reference word 0.0 if there is no error, else inf."""
        if self.words:
            return self.errors / self.words
        return math.inf if self.errors else 0.0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.words + other.words,
        )


def word_errors(reference: str, hypothesis: str, metric: str = WER) -> WordErrors:
    """Count the errors of the best alignment; words are split at white space and compared with composed characters.

    Args:
        reference, hypothesis: texts; see `nemo_codert.data.normalisation` for the form of the reference.
        metric: `WER`, or `CER` to count characters.

    Returns:
        The counts.

    Example:
        >>> word_errors("one two three", "one too three four")
        WordErrors(substitutions=1, insertions=1, deletions=0, words=3)
        >>> word_errors("one two", "one too", CER)
        WordErrors(substitutions=1, insertions=0, deletions=0, words=7)
    """
    wanted = units(reference, metric)
    if wanted == (guess := units(hypothesis, metric)):  # the most frequent case
        return WordErrors(words=len(wanted))
    counts = kaldialign.edit_distance(wanted, guess)
    return WordErrors(counts["sub"], counts["ins"], counts["del"], len(wanted))


@dataclass(frozen=True)
class Column:
    """One place of several texts that are aligned with a reference.

    reference: its word, None where a text has one that the reference lacks. words: by the name of the text, None where
    the text lacks the word.
    """

    reference: str | None
    words: dict[str, str | None]


def aligned(reference: str, hypotheses: Mapping[str, str]) -> list[Column]:
    """Align texts with a reference, word by word, each with the fewest errors.

    Args:
        reference: text.
        hypotheses: texts, by name.

    Returns:
        A column for every reference word, and between them as many as the text with the most insertions there needs.

    Example:
        >>> for column in aligned("one two", {"a": "one", "b": "so one two"}):
        ...     print(column.reference, column.words)
        None {'a': None, 'b': 'so'}
        one {'a': 'one', 'b': 'one'}
        two {'a': None, 'b': 'two'}
    """
    words = units(reference)
    inserted: dict[str, list[list[str]]] = {}
    matched: dict[str, list[str | None]] = {}
    for name, text in hypotheses.items():
        inserted[name], matched[name] = [[] for _ in range(len(words) + 1)], []
        for ours, theirs in kaldialign.align(words, units(text), GAP):
            if ours == GAP:
                inserted[name][len(matched[name])].append(theirs)
            else:
                matched[name].append(None if theirs == GAP else theirs)
    columns = []
    for place in range(len(words) + 1):
        most = max((len(own[place]) for own in inserted.values()), default=0)
        for rank in range(most):
            extra = {name: own[place][rank] if rank < len(own[place]) else None for name, own in inserted.items()}
            columns.append(Column(None, extra))
        if place < len(words):
            columns.append(Column(words[place], {name: own[place] for name, own in matched.items()}))
    return columns


def total_word_errors(references: Iterable[str], hypotheses: Iterable[str], metric: str = WER) -> WordErrors:
    """Sum the counts of several utterances.

    Args:
        references, hypotheses: texts, one a utterance, in the same order.
        metric: see `word_errors`.

    Returns:
        The sum.

    Raises:
        ValueError: not as many hypotheses as references.

    Example:
        >>> total_word_errors(["one two", "three"], ["one", "three"]).wer  # 1 of 3 words
        0.3333333333333333
    """
    pairs = zip(references, hypotheses, strict=True)
    return sum((word_errors(reference, hypothesis, metric) for reference, hypothesis in pairs), WordErrors())
