"""Word errors with known answers."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_codert.evaluation.word_errors import (
    CER,
    WordErrors,
    aligned,
    metric_of,
    total_word_errors,
    units,
    word_errors,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("one two three", "one two three", (0, 0, 0, 3)),
        ("one two three", "one too three", (1, 0, 0, 3)),
        ("one two three", "one three", (0, 0, 1, 3)),
        ("one two three", "one two two three", (0, 1, 0, 3)),
        ("one two three", "", (0, 0, 3, 3)),
        ("", "one two", (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0)),
        ("  one\ttwo  ", "one two\n", (0, 0, 0, 2)),
        ("One", "one", (1, 0, 0, 1)),
        ("ab", "a b", (1, 1, 0, 1)),
        ("a b c d", "b c d e e", (0, 2, 1, 4)),
    ],
)
def test_counts_are_known(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis) == WordErrors(*expected)


def test_composed_and_decomposed_characters_are_the_same():
    assert word_errors("e\u0301te\u0301", "\u00e9t\u00e9") == WordErrors(words=1)
    assert word_errors("e\u0301", "e", CER) == WordErrors(substitutions=1, words=1)


def test_characters_are_counted_as_nemo_counts_them():
    assert units(" ab  c\n", CER) == ["a", "b", " ", "c"]
    assert word_errors("零一二", "零二", CER) == WordErrors(deletions=1, words=3)
    assert word_errors("零一二", "零二") == WordErrors(substitutions=1, words=1)
    assert total_word_errors(["ab", "c"], ["ab", "d"], CER).wer == pytest.approx(1 / 3)
    assert (metric_of({"use_cer": True}), metric_of({"use_cer": None})) == ("CER", "WER")


@pytest.mark.parametrize(
    "reference, hypothesis, words, characters",
    [
        ("שלום לכל העולם", "שלום העולם", (0, 0, 1, 3), (0, 0, 4, 14)),  # right to left
        ("今天天气很好", "今天天很好", (1, 0, 0, 1), (0, 0, 1, 6)),  # without spaces: one word
        ("Hello, World!", "hello world", (2, 0, 0, 2), (2, 0, 2, 13)),  # punctuation and capitals are errors
        ("नमस्ते दुनिया", "नमस्ते दुनिया", (0, 0, 0, 2), (0, 0, 0, 13)),  # combining signs count as characters
    ],
)
def test_scripts_are_counted_by_words_and_by_characters(reference, hypothesis, words, characters):
    assert word_errors(reference, hypothesis) == WordErrors(*words)
    assert word_errors(reference, hypothesis, CER) == WordErrors(*characters)
    columns = aligned(reference, {"student": hypothesis})
    assert " ".join(column.reference for column in columns if column.reference).split() == reference.split()


def test_rates_are_errors_over_words():
    assert word_errors("one two three four", "one too four").wer == 0.5
    assert word_errors("one", "two three four").wer == 3.0  # insertions count: more than 100%
    assert WordErrors().wer == 0.0
    assert WordErrors(insertions=1).wer == math.inf


def test_totals_are_summed_errors_over_summed_words():
    total = total_word_errors(["a", "a b c d e f g h i", ""], ["b", "a b c d e f g h i", "x"])
    assert total == WordErrors(1, 1, 0, 10)
    assert total.wer == 0.2  # a mean of rates would be infinite
    assert total_word_errors([], []) == WordErrors()


def test_as_many_hypotheses_as_references_are_needed():
    with pytest.raises(ValueError):
        total_word_errors(["a", "b"], ["a"])


def test_errors_are_the_edit_distance_of_a_plain_table():
    generator = random.Random(0)
    for _ in range(200):
        reference = [generator.choice("abc") for _ in range(generator.randrange(8))]
        hypothesis = [generator.choice("abc") for _ in range(generator.randrange(8))]
        row = list(range(len(hypothesis) + 1))
        for i, word in enumerate(reference, start=1):
            previous, row[0] = row[:], i
            for j, other in enumerate(hypothesis, start=1):
                row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
        counts = word_errors(" ".join(reference), " ".join(hypothesis))
        assert counts.errors == row[-1]
        assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)


# ---- alignment -----------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)


@given(reference=WORDS, first=WORDS, second=WORDS)
def test_an_alignment_holds_every_word_in_order_and_as_many_errors_as_are_counted(reference, first, second):
    texts = {"first": first, "second": second}
    columns = aligned(reference, texts)
    assert [column.reference for column in columns if column.reference is not None] == reference.split()
    for name, text in texts.items():
        assert [column.words[name] for column in columns if column.words[name] is not None] == text.split()
        wrong = sum(column.words[name] != column.reference for column in columns)
        assert wrong == word_errors(reference, text).errors


def test_texts_that_lack_an_inserted_word_leave_its_column_empty():
    columns = aligned("a", {"one": "x y a", "two": "a z", "none": ""})
    assert [column.reference for column in columns] == [None, None, "a", None]
    assert [column.words["two"] for column in columns] == [None, None, "a", "z"]
    assert [column.words["none"] for column in columns] == [None] * 4
