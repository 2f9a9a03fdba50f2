"""The alignment of a transcript: hand-made lattices, all paths enumerated, and joints of both kinds."""

import itertools
import math

import pytest
import torch

from nemo_codert.analysis import alignment as module
from nemo_codert.analysis.alignment import Alignment, align, most_likely_alignment, node_logits, passed_logits
from nemo_codert.modules.encoder_logits import joint_logits

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"


def lattice_of(frames: list[int], num_frames: int, certainty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Label and blank log-probabilities [1, T, U] and [1, T, U+1] that prefer emissions in the given frames."""
    label = torch.full((1, num_frames, len(frames)), math.log(1 - certainty))
    for u, t in enumerate(frames):
        label[0, t, u] = math.log(certainty)
    blank = torch.log1p(-torch.nn.functional.pad(label, (0, 1), value=-torch.inf).exp())
    return label, blank


def test_a_hand_made_lattice_gives_its_path():
    label, blank = lattice_of([1, 1, 3], num_frames=5, certainty=0.9)
    found = most_likely_alignment(label, blank, torch.tensor([5]), torch.tensor([3]))
    assert found.frames.tolist() == [[1, 1, 3]]
    assert found.states.tolist() == [[0, 2, 2, 3, 3]]  # tokens emitted when a frame is left
    assert found.first().tolist() == [[True, False, True]]


def test_modes_are_those_of_all_paths():
    num_frames, tokens = 4, 3
    label = torch.randn(1, num_frames, tokens).double().mul(2).sigmoid().log()
    blank = torch.randn(1, num_frames, tokens + 1).double().mul(2).sigmoid().log()
    emitted, left = torch.zeros(num_frames, tokens), torch.zeros(num_frames, tokens + 1)
    for path in itertools.combinations_with_replacement(range(num_frames), tokens):
        states = [sum(frame <= t for frame in path) for t in range(num_frames)]
        log_prob = sum(label[0, t, u] for u, t in enumerate(path)) + sum(blank[0, t, u] for t, u in enumerate(states))
        for u, t in enumerate(path):
            emitted[t, u] += log_prob.exp()
        for t, u in enumerate(states):
            left[t, u] += log_prob.exp()
    found = most_likely_alignment(label, blank, torch.tensor([num_frames]), torch.tensor([tokens]))
    assert torch.equal(found.states[0], left.argmax(1)) and torch.equal(found.frames[0], emitted.argmax(0))


def test_utterances_of_a_batch_do_not_see_each_other():
    (label, blank), (other, other_blank) = lattice_of([0, 2], 4, 0.8), lattice_of([1], 3, 0.8)
    pad = torch.nn.functional.pad
    labels = torch.cat([label, pad(other, (0, 1, 0, 1), value=math.nan)])
    blanks = torch.cat([blank, pad(other_blank, (0, 1, 0, 1), value=math.nan)])
    found = most_likely_alignment(labels, blanks, torch.tensor([4, 3]), torch.tensor([2, 1]))
    assert found.frames.tolist() == [[0, 2], [1, 0]]
    assert found.states.tolist() == [[1, 1, 2, 2], [0, 1, 1, 0]]


def test_without_tokens_every_frame_is_left_from_the_start():
    found = most_likely_alignment(torch.zeros(1, 3, 0), torch.zeros(1, 3, 1), torch.tensor([3]), torch.tensor([0]))
    assert found.states.tolist() == [[0, 0, 0]] and found.frames.shape == found.first().shape == (1, 0)


def test_a_frame_named_out_of_order_is_still_first_only_once():
    frames = torch.tensor([[2, 4, 2, 4, 5]])
    assert Alignment(torch.zeros(1, 6).long(), frames).first().tolist() == [[True, True, False, False, True]]


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
def test_a_joint_is_aligned_in_parts_as_on_its_whole_lattice(make_model, batch, joint, monkeypatch):
    pair = make_model("tandem_kd", joint).eval()
    signal, signal_len, tokens, tokens_len = batch
    with torch.no_grad():
        output = pair.teacher_transducer.run(*pair.extract_features(signal, signal_len), tokens, tokens_len)
        decoded, _, _ = pair.decoder(targets=tokens, target_length=tokens_len)
        nodes = joint_logits(pair.joint, output.encoded, decoded)  # [B, T, U+1, V+1]
        found = align(output)
        monkeypatch.setattr(module, "LATTICE_VALUES", 3 * nodes[:, 0].numel())
        in_parts = align(output)
        assert torch.equal(found.states, in_parts.states) and torch.equal(found.frames, in_parts.frames)
        passed = passed_logits(output, found)
        states = torch.arange(tokens.shape[1]).expand_as(tokens)
        emitting = node_logits(output, found.frames, states)
    assert found.states.max() <= tokens_len.max() and found.states.max() > 0
    for b, (frames, count) in enumerate(zip(output.encoded_len.tolist(), tokens_len.tolist(), strict=True)):
        assert found.states[b, frames - 1] == count  # the last blank comes after the last token
        for t in range(frames):
            # one-row and many-row products of float32 sums over 24 channels
            torch.testing.assert_close(passed[b, t], nodes[b, t, found.states[b, t]], rtol=1e-5, atol=1e-5)
        for u in range(count):
            torch.testing.assert_close(emitting[b, u], nodes[b, found.frames[b, u], u], rtol=1e-5, atol=1e-5)
