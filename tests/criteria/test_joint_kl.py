"""The term at the joint in a pair: against brute force over the whole lattice, for all joints, nodes and classes."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.config.criteria import JointKLConfig, TermConfig
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.encoder_logits import token_logits
from nemo_codert.modules.transducer import Batch
from tests.conftest import ADDITIVE, STOCK, conformer
from tests.models.teacher_files import TDT, pair_config, save_teacher
from tests.reference import lattice_kl as reference

BLANK = 32
OPTIONS = {
    "all": {},
    "non_blank": {"nodes": "non_blank", "temperature": 2.0},
    "occupied": {"nodes": "occupied", "temperature": "adaptive", "temperature_floor": 2.0, "frame_shift": 1},
    "best_path": {"nodes": "best_path", "reduction": "per_frame"},
    "three": {"nodes": "occupied", "classes": "target_blank_rest", "temperature": 0.5},
}
PAIRS = {
    "additive": ("tandem_kd", ADDITIVE),
    "shared": ("shared_kd", ADDITIVE),
    "stock": ("tandem_kd", STOCK),
    "stock_shared": ("shared_kd", STOCK),
}


@pytest.fixture(scope="module")
def built(make_config):
    """Factory of a pair by its name and the options of its one term, with the teacher's frames at twice the rate."""
    models = {}

    def make(name: str, options: dict, fast: bool = False) -> EncDecCoDERTBPEModel:
        key = name, fast
        if key not in models:
            cfg = make_config(*PAIRS[name], student=conformer(subsampling=8 if fast else 4))
            cfg.codert.distillation = {"term": {"at": "joint", "weight": 0.5}}
            torch.manual_seed(0)
            models[key] = EncDecCoDERTBPEModel(cfg)
        model = models[key]
        model.zero_grad()
        term = model.criteria["term"]
        defaults = {key: value for key, value in vars(JointKLConfig()).items() if key not in vars(TermConfig())}
        term.spec = replace(term.spec, options={**defaults, **options})
        return model

    return make


def outputs(model, batch):
    named = Batch.of(batch)
    features = model.extract_features(named.signal, named.signal_len)
    student = model.student_transducer.run(*features, named.transcript, named.transcript_len)
    return student, model.teacher.output(*features, named, student), named


def lattice(output, b: int) -> torch.Tensor:
    """Logits [T, U+1, V+1] of utterance b, float64."""
    joint, t, u = output.networks.joint, int(output.encoded_len[b]), int(output.transcript_len[b])
    nodes = output.encoder_side[b, :t, None] + output.prediction_side[b, None, : u + 1]
    return token_logits(joint, joint.joint_net(nodes)).double()


def expected(student, teacher, batch, options: dict, factor: int = 1) -> torch.Tensor:
    sums, frames = [], 0
    shift, floor = options.get("frame_shift", 0), options.get("temperature_floor")
    for b in range(len(batch.signal)):
        own, target = lattice(student, b)[shift:], lattice(teacher, b).detach()
        targets = batch.transcript[b, : own.shape[1] - 1]
        pairs = min(len(own), -(-len(target) // factor))
        own, target = own[:pairs], target[: pairs * factor]
        tau = options.get("temperature", 1.0)
        if tau == "adaptive":
            tau = temperature(target, floor)
        plain = reference.three_classes(target, targets, BLANK)
        weights = {
            "all": lambda: None,
            "non_blank": lambda plain=plain: 1 - plain[..., 1].exp(),
            "occupied": lambda plain=plain: occupied(plain),
            "best_path": lambda plain=plain: best_path(plain),
        }[options.get("nodes", "all")]()
        groups = [range(t * factor, min((t + 1) * factor, len(target))) for t in range(pairs)]
        repeated = torch.cat([own[t : t + 1].expand(len(group), -1, -1) for t, group in enumerate(groups)])
        if options.get("classes") == "target_blank_rest":
            sides = (reference.three_classes(side / tau, targets, BLANK) for side in (repeated, target))
            nodes = tau**2 * reference.three_class_kl(*sides)
        else:
            nodes = tau**2 * reference.node_kl(repeated / tau, target / tau)
        mean = lambda rows, groups=groups: torch.stack([rows[group.start : group.stop].mean(0) for group in groups])  # noqa: E731
        sums.append(reference.weighted(mean(nodes), None if weights is None else mean(weights)))
        frames += pairs
    total = torch.stack(sums).sum()
    return total / (frames if options.get("reduction") == "per_frame" else len(sums))


def temperature(logits: torch.Tensor, floor: float) -> float:
    """Least tau of 1 or above at which the nodes' mean entropy is the floor, by a fine search."""

    def entropy(tau: float) -> float:
        rows = (logits / tau).log_softmax(-1)
        return float(-(rows.exp() * rows).sum(-1).mean())

    low, high = 1.0, 1000.0
    if entropy(low) >= floor:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if entropy(middle) >= floor else (middle, high)
    return high


def occupied(log_probs: torch.Tensor) -> torch.Tensor:
    """Posterior of each node: the gradient of the log-likelihood, of the plain recursion, by its log-probabilities."""
    leaf = log_probs.detach().requires_grad_()
    reached, (frames, states, _) = {(0, 0): torch.zeros((), dtype=torch.float64)}, leaf.shape
    for t in range(frames):
        for u in range(states):
            ways = [reached[t - 1, u] + leaf[t - 1, u, 1]] if t else []
            ways += [reached[t, u - 1] + leaf[t, u - 1, 0]] if u else []
            if ways:
                reached[t, u] = torch.stack(ways).logsumexp(0)
    (gradient,) = torch.autograd.grad(reached[frames - 1, states - 1] + leaf[frames - 1, states - 1, 1], leaf)
    return gradient[..., :2].sum(-1)


def best_path(log_probs: torch.Tensor) -> torch.Tensor:
    """1 at the nodes of the best alignment, by the same recursion with the largest in the place of the sum."""
    best, (frames, states, _) = {(0, 0): (0.0, [(0, 0)])}, log_probs.shape
    for t in range(frames):
        for u in range(states):
            ways = []
            if t:
                score, path = best[t - 1, u]
                ways.append((score + float(log_probs[t - 1, u, 1]), [*path, (t, u)]))
            if u:
                score, path = best[t, u - 1]
                ways.append((score + float(log_probs[t, u - 1, 0]), [*path, (t, u)]))
            best[t, u] = max(ways, default=best.get((t, u)))
    found = torch.zeros(frames, states, dtype=torch.float64)
    for node in best[frames - 1, states - 1][1]:
        found[node] = 1.0
    return found


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("pair", PAIRS)
def test_it_is_the_divergence_of_the_whole_lattice(pair, name, built, batch):
    model = built(pair, OPTIONS[name])
    student, teacher, named = outputs(model, batch)
    value = model.criteria["term"](student, teacher, named)
    plain = expected(student, teacher, named, OPTIONS[name])
    torch.testing.assert_close(value.double(), plain, rtol=2e-5, atol=1e-6)  # float32 networks
    shared = pair.endswith("shared")
    read = [student.encoder_side, *([] if shared else [student.prediction_side])]
    mine = torch.autograd.grad(value, read, retain_graph=True)
    for own, other in zip(mine, torch.autograd.grad(plain, read, retain_graph=True), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6)
    value.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"student_encoder", "student_joint"} | (set() if shared else {"student_decoder"})


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("own", "target"), [("additive", "stock"), ("stock", "additive")])
def test_joints_may_differ(own, target, name, built, batch):
    model = built(own, OPTIONS[name])
    student, (_, teacher, named) = outputs(model, batch)[0], outputs(built(target, {}), batch)
    value = model.criteria["term"](student, teacher, named)
    plain = expected(student, teacher, named, OPTIONS[name])
    torch.testing.assert_close(value.double(), plain, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["all", "occupied", "three"])
@pytest.mark.parametrize("pair", ["additive", "stock"])
def test_a_faster_teachers_divergences_are_averaged_over_the_group(pair, name, built, batch):
    model = built(pair, OPTIONS[name], fast=True)
    student, teacher, named = outputs(model, batch)
    assert model.criteria["term"].frames_per_student_frame == 2
    value = model.criteria["term"](student, teacher, named)
    plain = expected(student, teacher, named, OPTIONS[name], factor=2)
    torch.testing.assert_close(value.double(), plain, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("pair", ["additive", "shared", "stock"])
def test_both_ways_adds_the_mirrored_term(pair, built, batch):
    model = built(pair, {"nodes": "occupied", "both_ways": True})
    student, teacher, named = outputs(model, batch)
    value = model.criteria["term"](student, teacher, named)
    both = sum(expected(*sides, named, {"nodes": "occupied"}) for sides in ((student, teacher), (teacher, student)))
    torch.testing.assert_close(value.double(), both, rtol=2e-5, atol=1e-6)
    value.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder", "student_encoder"} <= moved
    assert ("decoder" in moved) == ("student_decoder" in moved) == (pair != "shared")


def test_a_constant_moved_in_the_teachers_joint_changes_nothing(built, batch):
    values = []
    model = built("additive", {"nodes": "occupied"})
    for shift in (0.0, 80.0):
        with torch.no_grad():
            model.joint.enc.bias[5] += shift
            model.joint.pred.bias[5] -= shift
        values.append(model.criteria["term"](*outputs(model, batch)))
    with torch.no_grad():
        model.joint.enc.bias[5] -= 80.0
        model.joint.pred.bias[5] += 80.0
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=0)  # the shift rounds the logits themselves


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "some"}, "term.nodes is 'some', wanted one of all, non_blank, occupied, best_path"),
        ({"classes": "three"}, "term.classes is 'three', wanted one of all, target_blank_rest"),
        ({"temperature": "warm"}, "term.temperature is 'warm'"),
        ({"frame_shift": -1}, "term.frame_shift"),
        ({"prior": "mean_prediction"}, "prior"),
        ({"both_ways": True, "frame_shift": 1}, "both_ways is true with frame_shift 1"),
    ],
)
def test_values_that_do_not_fit_are_named(options, message, make_config):
    cfg = make_config("tandem_kd")
    cfg.codert.distillation = {"term": {"at": "joint", **options}}
    with pytest.raises(ValueError, match=message):
        checked_config(cfg)


def test_a_floor_that_no_distribution_reaches_is_named(make_config):
    cfg = make_config("tandem_kd")
    cfg.codert.distillation = {"term": {"at": "joint", "temperature": "adaptive", "temperature_floor": 4.0}}
    with pytest.raises(ValueError, match="term.temperature_floor is 4.0, wanted 0 or more and below"):
        EncDecCoDERTBPEModel(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "best_path"}, "term.nodes is best_path but the teacher is a TDT model"),
        ({"classes": "target_blank_rest"}, "term.classes is target_blank_rest but the teacher is a TDT model"),
        ({"both_ways": True}, "both_ways is true but model.codert.teacher is frozen"),
    ],
)
def test_what_has_no_meaning_for_a_frozen_tdt_teacher_is_refused(options, message, make_config):
    cfg = OmegaConf.merge(make_config("static", STOCK), TDT, {"codert": {"teacher_checkpoint": "t.nemo"}})
    cfg.codert.distillation = {"term": {"at": "joint", **options}}
    with pytest.raises(ValueError, match=message):
        checked_config(cfg)


@pytest.mark.parametrize("nodes", ["all", "non_blank"])
def test_a_tdt_teachers_token_probabilities_are_compared_without_its_durations(nodes, make_config, batch, tmp_path):
    path, _ = save_teacher(make_config, tmp_path, "tdt")
    cfg = pair_config(make_config, "tdt", path)
    cfg.codert.distillation = {"term": {"at": "joint", "nodes": nodes, "weight": 0.5}}
    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(cfg)
    student, teacher, named = outputs(model, batch)
    value = model.criteria["term"](student, teacher, named)
    plain = expected(student, teacher, named, {"nodes": nodes})
    torch.testing.assert_close(value.double(), plain, rtol=2e-5, atol=1e-6)
