"""Node weights, three classes and joints of any kind: against brute force over alignments, nodes and classes."""

import math

import pytest
import torch

from nemo_codert.losses import (
    JointSide,
    additive_class_log_probs,
    additive_lattice_kl,
    class_divergence,
    joint_class_log_probs,
    joint_lattice_kl,
    joint_rnnt,
    joint_temperatures,
    lattice_temperatures,
    node_kl,
    node_weights,
)
from tests.reference import lattice_kl as reference

pytestmark = pytest.mark.unit

FRAMES, TOKENS, BLANK = [5, 3, 1], [3, 0, 2], 6
LENGTHS = {"encoded_lengths": torch.tensor(FRAMES), "target_lengths": torch.tensor(TOKENS)}
TARGETS = torch.tensor([[2, 2, 5], [9, -9, 9], [0, 4, -1]])  # padding is not read


def parts(seed: int, width: int = 7, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (2 * torch.randn(3, length, width, generator=generator, dtype=torch.float64) for length in (5, 4))
    return tuple(each.to(dtype).requires_grad_() for each in made)


def additive(frames: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return frames + states


def stock(width: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(width, 7)).double()


def side(kind: str, seed: int) -> JointSide:
    if kind == "additive":
        return JointSide(additive, *parts(seed))
    output = stock(11, seed)
    return JointSide(lambda frames, states: output(frames + states), *parts(seed, 11))


def utterances(given: JointSide) -> list[torch.Tensor]:
    """Logits [T_b, U_b+1, V+1] of each."""
    logits = given.joint(given.encoder_part[:, :, None], given.prediction_part[:, None])
    return [logits[b, :t, : u + 1] for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True))]


def leaves(given: JointSide) -> list[torch.Tensor]:
    return list(given[1:])


@pytest.mark.parametrize("nodes", ["all", "non_blank", "occupied", "best_path"])
def test_node_weights_are_those_of_all_alignments(nodes):
    given = side("stock", 3)
    log_probs = joint_class_log_probs(given, TARGETS, *LENGTHS.values(), num_classes=7, blank=BLANK)
    label, blank = log_probs[:, :, :-1, 0].clone(), log_probs[..., 1].clone()
    for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True)):  # padding is not read
        label[b, t:], label[b, :, u:], blank[b, t:], blank[b, :, u + 1 :] = math.nan, math.nan, math.nan, math.nan
    weights = node_weights(nodes, label, blank, *LENGTHS.values())
    assert not weights.requires_grad and weights.shape == (3, 5, 4)
    for b, logits in enumerate(utterances(given)):
        t, u = logits.shape[0], logits.shape[1] - 1
        plain = reference.three_classes(logits.detach(), TARGETS[b, :u], BLANK)
        best = max(reference.paths(t, u), key=lambda path, plain=plain: reference.path_log_prob(plain, path))
        expected = {
            "all": torch.ones(t, u + 1, dtype=torch.float64),
            "non_blank": 1 - plain[..., 1].exp(),
            "occupied": reference.occupancies(plain),
            "best_path": torch.zeros(t, u + 1, dtype=torch.float64).index_put(
                tuple(torch.tensor(best).T), torch.tensor(1.0, dtype=torch.float64)
            ),
        }[nodes]
        torch.testing.assert_close(weights[b, :t, : u + 1], expected, rtol=1e-12, atol=1e-12)
        assert not weights[b, t:].any() and not weights[b, :, u + 1 :].any()
        if nodes in ("occupied", "best_path"):
            assert weights[b].sum().item() == pytest.approx(t + u)


def test_utterances_without_frames_have_no_weight():
    label, blank = torch.full((1, 2, 1), math.nan), torch.full((1, 2, 2), math.nan)
    for nodes in ("all", "non_blank", "occupied", "best_path"):
        assert not node_weights(nodes, label, blank, torch.tensor([0]), torch.tensor([1])).any()
    with pytest.raises(ValueError, match="nodes must be one of"):
        node_weights("some", label, blank, torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize("temperature", [1.0, torch.tensor([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("kinds", [("additive", "stock"), ("stock", "additive"), ("additive", "additive")])
def test_three_classes_are_those_of_the_sum_over_all_others(kinds, temperature):
    student, teacher = side(kinds[0], 1), side(kinds[1], 2)
    settings = {"blank": BLANK, "temperature": temperature}
    found = []
    for kind, given in zip(kinds, (student, teacher), strict=True):
        of_batch = TARGETS, *LENGTHS.values()
        found.append(
            additive_class_log_probs(*given[1:], *of_batch, **settings)
            if kind == "additive"
            else joint_class_log_probs(given, *of_batch, num_classes=7, **settings)
        )
    nodes = class_divergence(*found, *LENGTHS.values())
    (nodes * nodes.detach().cos()).sum().backward()  # some upstream gradient
    gradients = [each.grad.clone() for each in leaves(student)]
    assert all(each.grad is None for each in leaves(teacher))
    for each in leaves(student):
        each.grad = None
    total = 0.0
    for b, (own, target) in enumerate(zip(utterances(student), utterances(teacher), strict=True)):
        tau = float(temperature[b]) if isinstance(temperature, torch.Tensor) else temperature
        classes = [
            reference.three_classes(logits / tau, TARGETS[b, : TOKENS[b]], BLANK) for logits in (own, target.detach())
        ]
        expected = reference.three_class_kl(*classes)
        torch.testing.assert_close(nodes[b, : len(own), : own.shape[1]], expected, rtol=1e-9, atol=1e-12)
        full = reference.node_kl(own / tau, target / tau)
        assert (expected <= full + 1e-12).all()
        total = total + (expected * expected.detach().cos()).sum()
    total.backward()
    for mine, each in zip(gradients, leaves(student), strict=True):
        torch.testing.assert_close(mine, each.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [30.0, 100.0, 900.0])
def test_the_rest_never_cancels_nor_underflows(dtype, apart):
    encoder, prediction = (each.detach() for each in parts(4))
    encoder[:, :, BLANK] += apart  # the others' probability is e^-apart
    encoder[:, 1, 0] += apart
    prediction[:, 1, 3] += apart  # maxima in different classes
    encoder, prediction = (each.to(dtype).requires_grad_() for each in (encoder, prediction))
    found = additive_class_log_probs(encoder, prediction, TARGETS, *LENGTHS.values(), blank=BLANK)
    found[..., 2].sum().backward()
    gradients = encoder.grad.clone(), prediction.grad.clone()
    encoder.grad = prediction.grad = None
    total = 0.0
    for b, logits in enumerate(utterances(JointSide(additive, encoder.double(), prediction.double()))):
        expected = reference.three_classes(logits, TARGETS[b, : TOKENS[b]], BLANK)
        mine = found[b, : logits.shape[0], : logits.shape[1]]
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
        total = total + expected[..., 2].sum()
    total.backward()
    for mine, each in zip(gradients, (encoder, prediction), strict=True):
        torch.testing.assert_close(mine, each.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 10**6])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kinds", [("stock", "stock"), ("additive", "stock"), ("stock", "additive")])
def test_all_nodes_of_any_joints_are_those_of_brute_force(kinds, recompute, chunk, monkeypatch):
    monkeypatch.setattr(node_kl, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(node_kl, "KEPT_ELEMENTS", 0 if recompute else 10**9)
    student, teacher = side(kinds[0], 1), side(kinds[1], 2)
    dense = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weights in (None, dense, dense * (dense > 0.8)):
        tau = torch.tensor([1.0, 2.0, 0.5]) if weights is not None else 2.0
        value = joint_lattice_kl(
            student=student, teacher=teacher, num_classes=7, **LENGTHS, node_weights=weights, temperature=tau
        )
        value.backward()
        gradients = [each.grad.clone() for each in leaves(student)]
        assert all(each.grad is None for each in leaves(teacher))
        for each in leaves(student):
            each.grad = None
        sums = []
        for b, (own, target) in enumerate(zip(utterances(student), utterances(teacher), strict=True)):
            warm = float(tau[b]) if weights is not None else tau
            nodes = warm**2 * reference.node_kl(own / warm, target.detach() / warm)
            of = None if weights is None else weights[b, : own.shape[0], : own.shape[1]]
            sums.append(reference.weighted(nodes, of))
        expected = torch.stack(sums).mean()
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
        expected.backward()
        for mine, each in zip(gradients, leaves(student), strict=True):
            torch.testing.assert_close(mine, each.grad, rtol=1e-9, atol=1e-12)
            each.grad = None


def test_chunks_and_products_agree_on_additive_joints_with_a_faster_teacher():
    student = side("additive", 1)
    teacher = JointSide(additive, torch.randn(3, 9, 7).double(), torch.randn(3, 4, 7).double())
    grouped = {"frames_per_student_frame": 2, "teacher_lengths": torch.tensor([9, 6, 2])}
    value = joint_lattice_kl(student=student, teacher=teacher, num_classes=7, **LENGTHS, **grouped)
    names = ("student_encoder_logits", "student_prediction_logits", "teacher_encoder_logits")
    logits = dict(zip((*names, "teacher_prediction_logits"), (*student[1:], *teacher[1:]), strict=True))
    torch.testing.assert_close(value, additive_lattice_kl(**logits, **LENGTHS, **grouped), rtol=1e-9, atol=0)


@pytest.mark.parametrize("floor", [0.0, 1.2])
def test_temperatures_of_any_joint_are_those_of_products(floor):
    given = side("additive", 5)
    found = joint_temperatures(given, *LENGTHS.values(), num_classes=7, floor=floor)
    logits = {"encoder_logits": given.encoder_part, "prediction_logits": given.prediction_part}
    torch.testing.assert_close(found, lattice_temperatures(**logits, **LENGTHS, floor=floor), rtol=1e-4, atol=0)


def test_a_path_costs_its_nodes_alone(monkeypatch):
    computed = []

    def counting(frames: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        logits = frames + states
        computed.append(logits[..., 0].numel())
        return logits

    given = side("additive", 1)._replace(joint=counting)
    path = torch.zeros(3, 5, 4)
    for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True)):
        path[b, 0, : u + 1], path[b, :t, u] = 1.0, 1.0
    joint_lattice_kl(student=given, teacher=side("stock", 2), num_classes=7, **LENGTHS, node_weights=path)
    assert sum(computed) <= 8 + 3 + 3  # T + U of every utterance
    assert joint_rnnt.CHUNK_ELEMENTS == node_kl.CHUNK_ELEMENTS
