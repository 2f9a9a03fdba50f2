"""The delay of a student against its teacher: alignments with known answers, and tiny pairs."""

import json
import math

import numpy as np
import pytest
import torch

from nemo_codert.analysis.branches import measured_branches
from nemo_codert.analysis.emission_delay import emission_delays, emission_frames, summarise, token_delays
from nemo_codert.analysis.readings import utterances
from tests.conftest import conformer


def test_a_delay_is_the_students_frame_less_the_teachers_in_milliseconds():
    student, teacher = [np.array([2, 5, 9])], [np.array([1, 5, 11])]
    assert token_delays(student, teacher, 0.08, 0.08) == pytest.approx([80, 0, -160])


def test_frames_of_different_rates_are_brought_to_one_clock():
    student, teacher = [np.array([1, 3])], [np.array([2, 5])]
    assert token_delays(student, teacher, 0.08, 0.04) == pytest.approx([0, 40])


def test_tokens_of_all_utterances_count_alike():
    frames = [np.array([3]), np.array([], dtype=int), np.array([1, 2, 3])]
    delays = token_delays(frames, [np.array([0]), np.array([], dtype=int), np.array([1, 2, 4])], 0.04, 0.04)
    assert delays == pytest.approx([120, 0, 0, -40])
    assert summarise(delays).mean == pytest.approx(20)


def test_the_summary_of_known_delays():
    summary = summarise(np.arange(0.0, 101.0)[::-1] * 10)
    assert (summary.tokens, summary.mean, summary.median, summary.p90) == (101, 500, 500, 900)


def test_without_a_token_there_is_no_figure():
    summary = summarise(token_delays([np.zeros(0)], [np.zeros(0)], 0.08, 0.08))
    assert summary.tokens == 0 and all(map(math.isnan, (summary.mean, summary.median, summary.p90)))
    assert len(token_delays([], [], 0.08, 0.08)) == 0


@pytest.mark.parametrize("teacher", [[np.array([1, 2])], [np.array([1]), np.array([2])], []])
def test_other_tokens_or_utterances_are_refused(teacher):
    with pytest.raises(ValueError, match="the same tokens of the same utterances"):
        token_delays([np.array([1, 2, 3])], teacher, 0.08, 0.08)


@pytest.fixture(scope="module")
def found(manifest):
    return utterances([json.loads(line) for line in manifest.read_text().splitlines()])


def test_a_branch_has_no_delay_against_itself(shared_pair, found):
    student, _ = measured_branches(shared_pair(strategy="tandem_kd").eval())
    delays = emission_delays(student, student, found)
    tokens = sum(len(student.model.tokenizer.text_to_ids(utterance.text)) for utterance in found)
    assert len(delays) == tokens and not delays.any()


def speak(transducer, tokens: list[int], frames: list[int]) -> None:
    """Make a branch's lattice that of a speaker who says each token in the given frame, whatever was said before."""
    joint, encoder = transducer.joint, transducer.encoder
    logits = torch.zeros(1, joint.num_classes_with_blank, frames[-1] + 3)
    logits[0, -1] = 5.0  # blank
    for token, frame in zip(tokens, frames, strict=True):
        logits[0, token, frame] = 10.0
    joint.enc = torch.nn.Identity()
    torch.nn.init.zeros_(joint.pred.weight), torch.nn.init.zeros_(joint.pred.bias)
    encoder.forward = lambda audio_signal, length: (logits, torch.tensor([logits.shape[2]]))


def test_tokens_are_found_in_the_frames_that_they_are_said_in(make_model, found):
    student, teacher = measured_branches(make_model(strategy="tandem_kd").eval())
    tokens = student.model.tokenizer.text_to_ids(found[0].text)
    said = [4 * u + 1 for u in range(len(tokens))]
    waits = [3, 2, 0, *[2] * (len(tokens) - 4), -1]  # frames of 40 ms by which the student is later
    speak(teacher.transducer, tokens, said)
    speak(student.transducer, tokens, [frame + wait for frame, wait in zip(said, waits, strict=True)])
    assert emission_frames(teacher, found[:1])[0].tolist() == said
    delays = emission_delays(student, teacher, found[:1])
    assert delays == pytest.approx([40 * wait for wait in waits])
    assert summarise(delays).median == pytest.approx(80)


def test_batches_do_not_change_the_delays(shared_pair, found):
    student, teacher = measured_branches(shared_pair(strategy="tandem_kd").eval())
    alone = emission_delays(student, teacher, found, batch_size=1)
    assert np.array_equal(alone, emission_delays(student, teacher, found, batch_size=8))


def test_a_slower_student_is_measured_in_time(make_model, found):
    model = make_model(strategy="tandem_kd", student=conformer(subsampling=8)).eval()
    student, teacher = measured_branches(model)
    assert student.seconds_per_frame == 2 * teacher.seconds_per_frame
    frames = emission_frames(student, found), emission_frames(teacher, found)
    expected = np.concatenate([80 * own - 40 * theirs for own, theirs in zip(*frames, strict=True)])
    assert emission_delays(student, teacher, found) == pytest.approx(expected)
