"""KL on the lattice of additive joints: against brute force over all nodes and classes, and what it promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import additive_lattice_kl, lattice_kl, lattice_temperatures
from tests.reference import lattice_kl as reference

pytestmark = pytest.mark.unit

SIDES = ("student_encoder_logits", "student_prediction_logits", "teacher_encoder_logits", "teacher_prediction_logits")
FRAMES, TOKENS = [6, 3, 1], [3, 0, 2]  # the first utterance fills the batch


def batch(seed: int = 0, dtype=torch.float64, scale: float = 2.0, classes: int = 7, shared: bool = False) -> dict:
    generator = torch.Generator().manual_seed(seed)
    lengths = (6, 4, 6, 4)
    made = {
        name: scale * torch.randn(3, length, classes, generator=generator, dtype=torch.float64)
        for name, length in zip(SIDES, lengths, strict=True)
    }
    made = {name: logits.to(dtype) for name, logits in made.items()}
    if shared:
        made["teacher_prediction_logits"] = made["student_prediction_logits"]
    return {**made, "encoded_lengths": torch.tensor(FRAMES), "target_lengths": torch.tensor(TOKENS)}


def graphed(given: dict) -> dict:
    leaves = {name: given[name].detach().clone().requires_grad_() for name in SIDES}
    return {**given, **leaves}


def brute_force(given: dict, weights=None, temperature=1.0) -> torch.Tensor:
    """The mean over utterances, from nodes of their own lattices."""
    sums = []
    for b, (t, u) in enumerate(zip(given["encoded_lengths"].tolist(), given["target_lengths"].tolist(), strict=True)):
        tau = float(temperature[b]) if isinstance(temperature, torch.Tensor) else temperature
        student, teacher = (
            reference.lattice(given[names[0]][b, :t] / tau, given[names[1]][b, : u + 1] / tau)
            for names in (SIDES[:2], SIDES[2:])
        )
        nodes = tau**2 * reference.node_kl(student, teacher)
        sums.append(reference.weighted(nodes, None if weights is None else weights[b, :t, : u + 1]))
    return torch.stack(sums).mean()


WEIGHTS = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
SETTINGS = {
    "uniform": {},
    "weights": {"node_weights": WEIGHTS},
    "warm": {"temperature": 2.0, "node_weights": WEIGHTS},
    "adaptive": {"temperature": torch.tensor([1.0, 3.0, 1.5])},
}


@pytest.fixture(params=["compiled", "torch", "torch, the batch at once"])
def way(request, monkeypatch) -> str:
    """How the divergence is computed: on a CPU, where nothing can be compiled, and as on a GPU."""
    if request.param != "compiled":
        monkeypatch.setattr(lattice_kl, "lattice_divergence", lambda dtype: None)
    if request.param == "torch, the batch at once":
        monkeypatch.setattr(lattice_kl, "_parts", lambda num_utterances, device: [slice(0, num_utterances)])
    return request.param


DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shared", [False, True])
@DTYPES
def test_value_and_gradients_are_those_of_brute_force(name, shared, dtype, tolerance, way):
    given, chosen = batch(dtype=dtype, shared=shared), SETTINGS[name]
    ours, plain = graphed(given), graphed({key: given[key].double() if key in SIDES else given[key] for key in given})
    if shared:  # the decoder's logits are one tensor, and constants of the term
        for each in (ours, plain):
            each[SIDES[1]] = each[SIDES[3]] = each[SIDES[3]].detach()
    value = additive_lattice_kl(**ours, **chosen)
    expected = brute_force(plain, chosen.get("node_weights"), chosen.get("temperature", 1.0))
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    (2.5 * value).backward()
    (2.5 * expected).backward()
    for side in SIDES[: 1 if shared else 2]:
        torch.testing.assert_close(ours[side].grad.double(), plain[side].grad, rtol=tolerance, atol=tolerance)
    assert all(ours[side].grad is None for side in SIDES[2:])


@pytest.mark.parametrize("classes", [7, 2500])
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 0.0])
def test_float32_is_right_to_a_millionth_of_a_nat_a_node_near_the_teacher(apart, classes, way):
    given = batch(1, torch.float32, classes=classes)
    for own, other in zip(SIDES[:2], SIDES[2:], strict=True):
        given[own] = given[other] + apart * given[own]
    exact = brute_force(given)
    # mean over utterances of sums that count T + U = 9 nodes at most
    torch.testing.assert_close(additive_lattice_kl(**given).double(), exact, rtol=1e-6, atol=5e-6)
    if apart == 0:
        ours = graphed(given)
        value = additive_lattice_kl(**ours)
        value.backward()
        assert value == 0 and not ours[SIDES[0]].grad.any() and not ours[SIDES[1]].grad.any()


@given(
    shift=st.sampled_from([1.0, 10.0, 40.0, 80.0, 300.0]),
    of_teacher=st.booleans(),
    classes=st.sampled_from([2, 9]),
    seed=st.integers(0, 50),
)
@settings(deadline=None, max_examples=30)
def test_a_constant_moved_from_encoder_to_prediction_changes_nothing(shift, of_teacher, classes, seed):
    plain, moved = batch(seed, classes=classes), batch(seed, classes=classes)
    constant = torch.zeros(classes, dtype=torch.float64)
    constant[seed % classes] = shift
    names = SIDES[2:] if of_teacher else SIDES[:2]
    moved[names[0]], moved[names[1]] = moved[names[0]] + constant, moved[names[1]] - constant
    expected = brute_force(plain)
    torch.testing.assert_close(additive_lattice_kl(**moved), expected, rtol=1e-9, atol=0)
    float32 = {name: moved[name].float() if name in SIDES else moved[name] for name in moved}
    value, of_rounded = additive_lattice_kl(**float32), brute_force(float32)  # the shift rounds the logits themselves
    torch.testing.assert_close(value.double(), of_rounded, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [100.0, 900.0])
def test_logits_hundreds_apart_are_computed_exactly(dtype, apart, way):
    given = batch(3, dtype)
    for row, (encoder, prediction) in enumerate((SIDES[:2], SIDES[2:])):
        given[encoder][:, 0, row] += apart  # the maxima of both sides are in different classes
        given[prediction][:, 1, row + 2] += apart
    ours, plain = graphed(given), graphed({key: given[key].double() if key in SIDES else given[key] for key in given})
    value, expected = additive_lattice_kl(**ours), brute_force(plain)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    for side in SIDES[:2]:
        torch.testing.assert_close(ours[side].grad.double(), plain[side].grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_and_the_order_of_utterances_do_not_matter(garbage, way):
    given = graphed(batch(dtype=torch.float32))
    value = additive_lattice_kl(**given, node_weights=WEIGHTS)
    value.backward()
    order, dirty, weights = [2, 0, 1], {}, WEIGHTS.clone()
    for name, counts in zip(SIDES, (FRAMES, [u + 1 for u in TOKENS]) * 2, strict=True):
        logits = torch.nn.functional.pad(given[name].detach(), (0, 0, 0, 2), value=0.0)
        for b, count in enumerate(counts):
            logits[b, count:] = garbage
        dirty[name] = logits[order].requires_grad_()
    weights = torch.nn.functional.pad(weights, (0, 2, 0, 2))
    for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True)):
        weights[b, t:], weights[b, :, u + 1 :] = garbage, garbage
    lengths = {name: given[name][order] for name in ("encoded_lengths", "target_lengths")}
    again = additive_lattice_kl(**dirty, **lengths, node_weights=weights[order])
    torch.testing.assert_close(again, value, rtol=1e-6, atol=0)  # sums of utterances in another order
    again.backward()
    for name in SIDES[:2]:
        torch.testing.assert_close(dirty[name].grad[:, :-2], given[name].grad[order], rtol=1e-6, atol=1e-7)
        assert not dirty[name].grad[:, -2:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype, way):
    given = graphed(batch(dtype=dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = additive_lattice_kl(**given)
    whole = additive_lattice_kl(
        **{name: given[name].detach().float() if name in SIDES else given[name] for name in given}
    )
    assert torch.equal(value, whole) and value.dtype == torch.float32
    value.backward()
    assert given[SIDES[0]].grad.dtype == dtype and given[SIDES[0]].grad.any()


def test_weights_below_a_millionth_and_utterances_without_frames_add_nothing(way):
    given = graphed(batch())
    weights = WEIGHTS.clone()
    weights[0] = 1e-9
    given["encoded_lengths"] = torch.tensor([6, 0, 1])
    value = additive_lattice_kl(**given, node_weights=weights)
    alone = {name: given[name][2:] for name in given}
    expected = additive_lattice_kl(**alone, node_weights=weights[2:]) / 3
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    assert not given[SIDES[0]].grad[:2].any() and given[SIDES[0]].grad[2].any()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_faster_teachers_divergences_are_averaged_over_the_group(factor):
    given = graphed(batch())
    frames = [count * factor - drop for count, drop in zip(FRAMES, (1, 0, 0), strict=True)]
    teacher = torch.randn(3, max(frames), 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    given["teacher_encoder_logits"] = teacher
    value = additive_lattice_kl(
        **given, frames_per_student_frame=factor, teacher_lengths=torch.tensor(frames), node_weights=WEIGHTS
    )
    value.backward()
    found = given[SIDES[0]].grad.clone(), given[SIDES[1]].grad.clone()
    sums = []
    plain = graphed(given)
    for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True)):
        nodes = torch.zeros(t, u + 1, dtype=torch.float64)
        for frame in range(t):
            group = range(frame * factor, min((frame + 1) * factor, frames[b]))
            own = plain[SIDES[0]][b, frame] + plain[SIDES[1]][b, : u + 1]
            kls = [reference.node_kl(own, teacher[b, j] + given[SIDES[3]][b, : u + 1]) for j in group]
            nodes = nodes.index_put((torch.tensor(frame),), torch.stack(kls).mean(0))
        sums.append(reference.weighted(nodes, WEIGHTS[b, :t, : u + 1]))
    expected = torch.stack(sums).mean()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for mine, side in zip(found, SIDES[:2], strict=True):
        torch.testing.assert_close(mine, plain[side].grad, rtol=1e-9, atol=1e-12)


def test_per_frame_divides_by_the_frames():
    given = batch()
    ratio = additive_lattice_kl(**given, reduction="per_frame") / additive_lattice_kl(**given)
    assert ratio.item() == pytest.approx(3 / sum(FRAMES))


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0, 1.9])
def test_an_utterances_temperature_lifts_the_mean_entropy_of_its_nodes_to_the_floor(floor):
    given = batch(4, scale=3.0)
    given[SIDES[2]][1] /= 100  # already above a small floor
    given[SIDES[3]][1] /= 100
    lengths = {name: given[name] for name in ("encoded_lengths", "target_lengths")}
    logits = {"encoder_logits": given[SIDES[2]], "prediction_logits": given[SIDES[3]]}
    found = lattice_temperatures(**logits, **lengths, floor=floor)
    for b, (t, u) in enumerate(zip(FRAMES, TOKENS, strict=True)):

        def entropy(tau: float, b=b, t=t, u=u) -> float:
            rows = reference.lattice(given[SIDES[2]][b, :t] / tau, given[SIDES[3]][b, : u + 1] / tau).log_softmax(-1)
            return float(-(rows.exp() * rows).sum(-1).mean())

        tau = float(found[b])
        assert tau == 1.0 if entropy(1.0) >= floor else entropy(tau) == pytest.approx(floor, abs=1e-4)
    assert floor or found.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student_encoder_logits": torch.zeros(3, 5, 7)}, "logits must be"),
        ({"encoded_lengths": torch.tensor([7, 1, 1])}, "encoded_lengths must lie between 0 and 6"),
        ({"target_lengths": torch.tensor([1.0, 1.0, 1.0])}, "target_lengths must be"),
        ({"node_weights": torch.zeros(3, 4, 6)}, "node_weights must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": torch.tensor([1.0, -1.0, 1.0])}, "temperature must be above 0"),
        ({"temperature": torch.ones(2)}, "temperature must be a number or"),
        ({"reduction": "mean"}, "reduction must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        additive_lattice_kl(**{**batch(), **changed})


@DTYPES
def test_a_gradient_that_is_not_wanted_is_not_computed_and_changes_nothing(dtype, tolerance, way):
    both = graphed(batch(dtype=dtype))
    additive_lattice_kl(**both).backward()
    for side in SIDES[:2]:
        given = batch(dtype=dtype)
        given[side].requires_grad_()
        additive_lattice_kl(**given).backward()
        torch.testing.assert_close(given[side].grad, both[side].grad, rtol=0, atol=0)
    assert not additive_lattice_kl(**batch(dtype=dtype)).requires_grad


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch):
    expected, found = graphed(batch(dtype=torch.float32)), graphed(batch(dtype=torch.float32))
    additive_lattice_kl(**expected).backward()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # those of the kernel alone
    additive_lattice_kl(**found).backward()
    torch.testing.assert_close(found[SIDES[0]].grad, expected[SIDES[0]].grad, rtol=0, atol=0)


def test_gradients_may_be_taken_twice(way):
    given = graphed(batch())
    value, leaves = additive_lattice_kl(**given), [given[side] for side in SIDES[:2]]
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(3 * value, leaves)
    torch.testing.assert_close(second, tuple(3 * each for each in first), rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_value_and_in_the_gradients(side, bad, way):
    given = batch(dtype=torch.float32)
    given[side][1, 0, 2] = bad
    given = graphed(given)
    value = additive_lattice_kl(**given)
    value.backward()
    assert not value.isfinite()
    for name in SIDES[:2]:
        assert not given[name].grad[1, 0].isfinite().all()
        assert given[name].grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("offset", [100.0, 5000.0])
@pytest.mark.parametrize("classes", [2, 1024])
def test_rows_that_lie_far_apart_lose_no_digits(offset, classes, way):
    given = batch(4, torch.float32, classes=classes)
    for student, teacher in zip(SIDES[:2], SIDES[2:], strict=True):
        given[student] = given[teacher] + 0.1 * given[student] + offset
    wide = {name: given[name].double() if name in SIDES else given[name] for name in given}
    value, expected = additive_lattice_kl(**given), brute_force(wide)
    nodes = sum(t + u for t, u in zip(FRAMES, TOKENS, strict=True)) / len(FRAMES)
    assert abs(value.double() - expected) <= 1e-6 * nodes


def test_a_temperature_gets_no_gradient():
    temperature = torch.tensor([1.0, 3.0, 1.5], requires_grad=True)
    value = additive_lattice_kl(**graphed(batch()), temperature=temperature)
    value.backward()
    assert temperature.grad is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_utterances_are_no_parts(device):
    assert lattice_kl._parts(0, torch.device(device)) == []
    assert additive_lattice_kl(**{name: value[:0] for name, value in batch().items()}) == 0
