"""Decoding speed is compared over equal steps: the forms emit at the same frames, and this is checked."""

import pytest

from nemo_codert.benchmark.decoding import (
    ADDITIVE,
    FORMS,
    STOCK,
    DecodingSettings,
    _joint,
    check_same_steps,
    decoding_cases,
    decoding_rows,
    make_encoded,
)
from nemo_codert.benchmark.measure import Measured, MeasureSettings

TINY = DecodingSettings(batch=3, frames=13, enc_hidden=8, vocabulary=20, pred_hidden=12, joint_hidden=10)


def test_a_quarter_of_the_frames_of_every_utterance_is_flagged():
    encoded, encoded_len = make_encoded(TINY)
    assert encoded.shape == (3, 8, 13) and encoded_len.tolist() == [13] * 3
    assert (encoded[:, 0] == 1).sum(1).tolist() == [3] * 3 and (encoded[:, 0].abs() == 1).all()


def test_every_form_emits_one_token_at_every_flagged_frame():
    encoded, _ = make_encoded(TINY)
    flagged = [row.nonzero().flatten().tolist() for row in encoded[:, 0] == 1]
    results = {case.name: case.prepare()() for case in decoding_cases(TINY, "cpu")}
    assert list(results) == [STOCK, ADDITIVE, "exported, exact", "exported, compact", "exported, narrow"]
    for utterances in results.values():
        assert [frames for _, frames in utterances] == flagged
        assert [len(tokens) for tokens, _ in utterances] == [3] * 3
    assert all(results[name] == results[ADDITIVE] for name in FORMS)
    assert len({token for tokens, _ in results[ADDITIVE] for token in tokens}) > 1
    check_same_steps(results)


@pytest.mark.parametrize(
    "name, result, message",
    [
        (STOCK, [([4, 5], [0, 3])], "other frames"),
        ("exported, exact", [([1, 3], [0, 2])], "other tokens"),
        ("exported, compact", [([1], [0])], "other frames"),
        ("exported, narrow", [([2, 2], [0, 2])], "other tokens"),
    ],
)
def test_other_steps_or_tokens_stop_the_comparison(name, result, message):
    same = [([1, 2], [0, 2])]
    results = {STOCK: [([7, 8], [0, 2])], ADDITIVE: same, **dict.fromkeys(FORMS, same)}
    check_same_steps(results)
    with pytest.raises(RuntimeError, match=message):
        check_same_steps({**results, name: result})


def test_a_comparison_without_any_token_is_refused():
    with pytest.raises(RuntimeError, match="other frames"):
        check_same_steps({name: [([], [])] for name in (STOCK, ADDITIVE)})


def test_speeds_are_held_against_the_stock_student(monkeypatch):
    seconds = {STOCK: [1.0], ADDITIVE: [0.8], **dict(zip(FORMS, ([2.0], [1.6], [1.25]), strict=True))}
    measured = {name: Measured(own, [([1], [0])]) for name, own in seconds.items()}
    monkeypatch.setattr("nemo_codert.benchmark.decoding.measure", lambda cases, settings, title: measured)
    rows, (best, kept) = decoding_rows(TINY, "cpu", MeasureSettings())
    assert [row.ratio for row in rows] == [1.0, 0.8, 2.0, 1.6, 1.25]
    assert (best.value, best.met, kept.value, kept.met) == (0.8, False, 1.25, True)
    assert "narrow" in best.text


def test_each_form_is_timed_at_its_own_width():
    widths = {name: _joint(name, TINY).joint_hidden for name in FORMS}
    assert list(widths.values()) == [2 * 21, 2 * (8 + 12), 8 + 12]
