"""One contract for every kind of distillation term, in a tiny pair.

A kind of `CRITERIA` without a case here fails. A term is 0 at equality where its case promises it, does not read
padding, does not depend on the order of utterances, moves no teacher, and leaves nothing in the student's file; weight
0 is the run without the term, and a resumed run is the run, both bit for bit.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.analysis.term_gradients import term_gradients
from nemo_codert.config.criteria import named_kinds
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch, BranchOutput
from tests.conftest import ADDITIVE, STOCK, conformer
from tests.models.teacher_files import CTC, save_teacher
from tests.models.training_runs import branch_losses, equal_states, shortest

FRAMES, TOKENS = 3, 2  # of padding


@dataclass(frozen=True)
class Case:
    """How a kind is built, and what it promises."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    zero_at_equality: bool = True
    strategy: str = "tandem_kd"
    hybrid: bool = False  # student and frozen teacher with CTC heads


PAIRS = {"layers": {1: 1, 2: 2}}
CASES = {
    "encoder": Case("encoder.kl"),
    "encoder_prior": Case("encoder.kl", {"prior": "mean_prediction", "temperature": "adaptive"}),
    "encoder_shared": Case("encoder.kl", {"prior": "mean_prediction", "reduction": "per_frame"}, strategy="shared_kd"),
    "mse": Case("hidden.mse", PAIRS),
    "cosine": Case("hidden.cosine", PAIRS),
    "correlation": Case("hidden.correlation", {**PAIRS, "self_weight": 0.1}, zero_at_equality=False),
    "energy": Case("hidden.energy", PAIRS),
    "gram": Case("hidden.gram", PAIRS),
    "ctc_last": Case("ctc.kl", {"temperature": 2.0}, hybrid=True),
    "ctc_middle": Case("ctc.l2", {"layers": [2], "ctc_weight": 0.0}, hybrid=True),
    "joint": Case("joint.kl", {"temperature": "adaptive"}),
    "joint_shared": Case("joint.kl", {"nodes": "occupied"}, strategy="shared_kd"),
    "joint_stock": Case("joint.kl", {"nodes": "best_path", "reduction": "per_frame"}, hybrid=True),
    "joint_classes": Case("joint.kl", {"nodes": "non_blank", "classes": "target_blank_rest", "temperature": 2.0}),
    "sequence": Case("sequence.l2"),
    "sequence_shared": Case("sequence.l2", strategy="shared_kd"),
}
ALL = pytest.mark.parametrize("name", CASES)


def test_every_kind_has_a_case():
    assert {case.kind for case in CASES.values()} >= set(named_kinds())


@pytest.fixture(scope="module")
def hybrid_file(make_config, tmp_path_factory) -> str:
    teacher = conformer(layers=2, channels=16)
    return save_teacher(make_config, tmp_path_factory.mktemp("hybrid"), "hybrid", teacher=teacher)[0]


@pytest.fixture(scope="module")
def pair(make_config, hybrid_file):
    """Factory of the pair of a case; of 16 channels the student's encoder is as large as the teacher's."""

    def make(case: Case, width: int = 12, seed: int = 0, **schedule) -> EncDecCoDERTBPEModel:
        encoders = {"teacher": conformer(layers=2, channels=16), "student": conformer(layers=2, channels=width)}
        cfg = make_config("static" if case.hybrid else case.strategy, STOCK if case.hybrid else ADDITIVE, **encoders)
        at, by = case.kind.split(".")
        cfg.codert.distillation = {"term": {"at": at, "by": by, "weight": 0.5, **case.options, **schedule}}
        if case.hybrid:
            own = {"codert": {"teacher_checkpoint": hybrid_file, "teacher_logits": "ctc"}, "student": CTC, **CTC}
            cfg = OmegaConf.merge(cfg, own)
        torch.manual_seed(seed)
        return EncDecCoDERTBPEModel(cfg)

    return make


@pytest.fixture(scope="module")
def built(pair):
    """`pair` for tests that change no weight: one of each case and width."""
    models = {}

    def make(name: str, width: int = 12) -> EncDecCoDERTBPEModel:
        if (name, width) not in models:
            models[name, width] = pair(CASES[name], width)
        models[name, width].zero_grad()
        return models[name, width]

    return make


def outputs(model, batch) -> tuple[BranchOutput, BranchOutput, Batch]:
    batch, (of_student, of_teacher) = Batch.of(batch), model.criteria.layers(0)
    features = model.extract_features(batch.signal, batch.signal_len)
    student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len, layers=of_student)
    teacher = model.teacher.output(*features, batch, student, of_teacher)
    for branch in (student, teacher):  # computed by the branches' own losses, which come first
        _ = branch.encoder_side, branch.prediction_side
    return student, teacher, batch


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@ALL
def test_it_is_zero_at_equality_where_that_is_promised(name, built, batch):
    model = built(name, 16)
    for source, target in zip(model.teacher_transducer.networks(), counterparts(model), strict=True):
        own = target.state_dict().keys()  # without a shared projection
        target.load_state_dict({key: value for key, value in source.state_dict().items() if key in own})
    value = model.criteria["term"](*outputs(model, batch))
    value.backward()
    measured = term_gradients(model, Batch.of(batch))["term"]
    if CASES[name].zero_at_equality:
        assert value == 0 and not gradients(model) and measured.largest < 1e-8 and not measured.silent
    else:
        assert value > 0 and measured.largest > 0


def counterparts(model) -> list[torch.nn.Module]:
    """The student's encoder, prediction network, joint and, where the teacher has one, CTC head of the term."""
    heads = list(getattr(model.criteria["term"], "heads", {}).values()) or [model.student_ctc_decoder]
    of_ctc = heads if model.teacher_transducer.ctc_head is not None else []
    return [model.student_encoder, model.student_decoder, model.student_joint, *of_ctc]


def padded(output: BranchOutput, order: list[int], garbage: float) -> BranchOutput:
    """Utterances in another order, with more frames and tokens of padding and garbage in all of the padding."""

    def with_garbage(features: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.pad(features, (0, FRAMES))
        beyond = torch.arange(features.shape[2]) >= output.encoded_len[:, None]
        return features.masked_fill(beyond[:, None], garbage)[order]

    return BranchOutput(
        output.networks,
        with_garbage(output.encoded),
        output.encoded_len[order],
        torch.nn.functional.pad(output.transcript, (0, TOKENS), value=5)[order],
        output.transcript_len[order],
        layers={number: with_garbage(layer) for number, layer in output.layers.items()},
    )


@ALL
def test_padding_and_the_order_of_utterances_do_not_matter(name, built, batch):
    model, found = built(name), []
    for order, garbage in (([0, 1, 2, 3], None), ([2, 0, 3, 1], 100.0)):
        student, teacher, named = outputs(model, batch)
        if garbage:
            student, teacher = padded(student, order, garbage), padded(teacher, order, garbage)
            named = Batch(named.signal, named.signal_len, student.transcript, student.transcript_len)
        value = model.criteria["term"](student, teacher, named)
        value.backward()
        found.append((value.detach(), gradients(model)))
        model.zero_grad()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)  # float32 sums in another order; 4e-7 seen
    first, second = found[0][1], found[1][1]
    largest = max(gradient.abs().max() for gradient in first.values())
    assert {key for key in first if first[key].abs().max() > 1e-5 * largest} <= second.keys()
    for key in second:  # some gradients are 0 but for rounding, as that of a key's bias
        torch.testing.assert_close(second[key], first[key], rtol=1e-3, atol=1e-5 * largest.item())


@ALL
def test_it_is_the_mean_of_its_utterances_alone(name, built, batch):
    student, teacher, named = outputs(built(name), batch)
    term = built(name).criteria["term"]
    alone = torch.stack([term(student.row(b), teacher.row(b), named.row(b)) for b in range(4)])
    if CASES[name].kind == "hidden.correlation" or "per_frame" in CASES[name].options.values():
        assert alone.isfinite().all()  # a statistic of the batch, or a mean over its frames
    else:
        torch.testing.assert_close(alone.mean(), term(student, teacher, named), rtol=1e-5, atol=0)


@ALL
def test_no_gradient_reaches_the_teacher_nor_a_shared_prediction_network(name, built, batch):
    model = built(name)
    student, teacher, named = outputs(model, batch)
    read = [teacher.encoded, *teacher.layers.values()]
    for tensor in read:
        tensor.requires_grad_() if tensor.is_leaf else tensor.retain_grad()
    model.criteria["term"](student, teacher, named).backward()
    assert all(tensor.grad is None for tensor in read)
    of_teacher = {id(parameter) for parameter in model.teacher_transducer.parameters()}
    assert not [name for name, p in model.named_parameters() if id(p) in of_teacher and p.grad is not None]
    moved = gradients(model)
    assert moved and all(parameter.startswith(("student_", "criteria.")) for parameter in moved)


@ALL
def test_its_gradient_is_measured_before_training_and_nothing_changes(name, built, batch):
    model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator, trainable = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    measured = term_gradients(model, Batch.of(batch))["term"]
    assert measured.largest > 1e-6 and not measured.silent
    assert torch.equal(torch.get_rng_state(), generator) and equal_states(model.state_dict(), before)
    assert trainable == [p.requires_grad for p in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())


@ALL
def test_under_bfloat16_autocast_it_is_float32_and_near(name, built, batch):
    model = built(name)
    whole = model.criteria["term"](*outputs(model, batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model.criteria["term"](*outputs(model, batch))
    value.backward()
    assert value.dtype == torch.float32
    # bfloat16 keeps 8 bits of features and logits, and the log-likelihoods' difference cancels some
    torch.testing.assert_close(value, whole, rtol=0.1, atol=0)
    assert gradients(model) and all(gradient.isfinite().all() for gradient in gradients(model).values())


def optimizer_of(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def train(model, batch, steps: range, optimizer=None) -> torch.optim.Optimizer:
    """Make optimizer steps of these numbers; the schedule of the terms reads them."""
    optimizer = optimizer or optimizer_of(model)
    model.train()
    for step in steps:
        optimizer.zero_grad()
        branch_losses(model, batch, step)["train_loss"].backward()
        optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def without_term(pair, session_batch):
    """The weights of a pair trained for two steps, by what else the pair has: the term has not begun."""
    found: dict[tuple, dict[str, torch.Tensor]] = {}

    def make(case: Case) -> dict[str, torch.Tensor]:
        if (case.strategy, case.hybrid) not in found:
            model = pair(case, from_step=2)
            train(model, shortest(session_batch), range(2))
            own = {key: value for key, value in model.state_dict().items() if not key.startswith("criteria.")}
            found[case.strategy, case.hybrid] = own
        return found[case.strategy, case.hybrid]

    return make


@ALL
def test_weight_0_is_the_run_without_the_term_bit_for_bit(name, pair, without_term, batch):
    model = pair(CASES[name], weight=0.0)
    train(model, shortest(batch), range(2))
    assert "term" not in model.criteria and equal_states(model.state_dict(), without_term(CASES[name]))


@ALL
def test_a_run_resumed_before_its_stage_is_the_run_bit_for_bit(name, pair, batch):
    batch, stage, file = shortest(batch), {"from_step": 1, "until_step": 2}, io.BytesIO()
    whole = pair(CASES[name], **stage)
    optimizer = train(whole, batch, range(1))
    torch.save((whole.state_dict(), optimizer.state_dict()), file)
    train(whole, batch, range(1, 3), optimizer)
    file.seek(0)
    weights, moments = torch.load(file)
    resumed = pair(CASES[name], seed=1, **stage)  # what it draws is replaced
    resumed.load_state_dict(weights)
    optimizer = optimizer_of(resumed)
    optimizer.load_state_dict(moments)
    train(resumed, batch, range(1, 3), optimizer)
    assert equal_states(resumed.state_dict(), whole.state_dict())
    assert not equal_states(resumed.state_dict(), weights)


@ALL
def test_nothing_of_it_is_in_the_students_file(name, built, batch, tmp_path):
    model = built(name)
    stock, networks = model.student_model(), model.student_transducer
    assert {key.split(".")[0] for key in stock.state_dict()} <= {
        "preprocessor", "encoder", "decoder", "joint", "ctc_decoder"
    }  # fmt: skip
    assert equal_states(stock.encoder.state_dict(), networks.encoder.state_dict())
    assert "codert" not in stock.cfg and "distillation" not in OmegaConf.to_yaml(stock.cfg)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@ALL
def test_it_is_on_a_gpu_what_it_is_on_the_cpu_and_finite_in_bfloat16(name, pair, batch):
    model, on_gpu = pair(CASES[name]).eval(), [tensor.cuda() for tensor in batch]
    expected = {key: float(value) for key, value in branch_losses(model, batch).items()}
    model.cuda()
    for key, value in branch_losses(model, on_gpu).items():
        assert float(value) == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key  # convolutions in TF32
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.train().training_step(on_gpu, 0)["loss"]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
