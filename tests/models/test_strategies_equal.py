"""Runs that must be equal step for step: no distillation and weight 0, the `tandem` student and the lone student."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nemo.collections.asr.models import EncDecRNNTBPEModel
from torch.utils.data import DataLoader

from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from tests.conftest import ADDITIVE, STOCK, conformer, lstm
from tests.models.training_runs import branch_losses, equal_states, train

STEPS, CLIP = 5, 0.5


@pytest.fixture
def batches(batch):
    """Five different batches of two utterances each, padded no further than a loader would."""
    signal, signal_len, transcript, transcript_len = batch
    made = []
    for rows in ([0, 1], [2, 3], [1, 2], [0, 3], [3, 1]):
        S, U = signal_len[rows].max(), transcript_len[rows].max()
        made.append((signal[rows, :S], signal_len[rows], transcript[rows, :U], transcript_len[rows]))
    return made


@pytest.mark.parametrize("share_decoder, joint", [(True, ADDITIVE), (False, STOCK)])
def test_weight_zero_is_the_run_without_distillation_bit_for_bit(shared_pair, batches, joint, share_decoder):
    def run(distillation: dict, loss_of=None):
        codert = {"share_decoder": share_decoder, "distillation": distillation}
        model = shared_pair(strategy="tandem_kd", joint=joint, codert=codert)
        losses = train(model, batches, loss_of and loss_of(model))
        return losses, {name: value.clone() for name, value in model.state_dict().items()}

    def the_two_rnnt_losses(model):
        def loss_of(batch):
            parts = branch_losses(model, batch)
            return parts["train_rnnt_loss_student"] + parts["train_rnnt_loss_teacher"]

        return loss_of

    without = run({"weight": 0.0}, the_two_rnnt_losses)
    for same in ({"weight": 0.0}, {"weight": 0.1, "start_step": 1000}):
        losses, state = run(same)
        assert losses == without[0] and equal_states(state, without[1])
    assert run({"weight": 0.1})[0] != without[0]


def lone_student(cfg) -> EncDecRNNTBPEModel:
    torch.manual_seed(0)
    return EncDecRNNTBPEModel(student_config(cfg))


def student_state(model: EncDecRNNTBPEModel) -> dict[str, torch.Tensor]:
    """The student's weights under stock names, of a pair or of the lone student."""
    prefix = "student_" if isinstance(model, EncDecCoDERTBPEModel) else ""
    networks = ("encoder.", "decoder.", "joint.")
    return {
        name.removeprefix(prefix): value.clone()
        for name, value in model.state_dict().items()
        if name.startswith(tuple(prefix + network for network in networks))
    }


class _Record(Callback):
    """Losses of the student and the norms of its gradients before they are clipped."""

    def __init__(self) -> None:
        self.losses, self.norms = [], []

    def on_before_optimizer_step(self, trainer, model, optimizer) -> None:
        prefix = "student_" if isinstance(model, EncDecCoDERTBPEModel) else ""
        names = tuple(f"{prefix}{network}." for network in ("encoder", "decoder", "joint"))
        gradients = {n.removeprefix(prefix): p.grad for n, p in model.named_parameters() if n.startswith(names)}
        self.norms.append(torch.nn.utils.get_total_norm([gradients[name] for name in sorted(gradients)]).item())

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        self.losses.append(trainer.callback_metrics[_student_loss(model)].item())


def _student_loss(model) -> str:
    return "train_rnnt_loss_student" if isinstance(model, EncDecCoDERTBPEModel) else "train_loss"


def fit(model: EncDecRNNTBPEModel, batches) -> _Record:
    """A real Lightning run, with gradient clipping; the optimizer is the one of the config."""
    record = _Record()
    trainer = Trainer(
        max_steps=len(batches),
        accelerator="cpu",
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    model.set_trainer(trainer)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return record


@pytest.mark.parametrize("encoder", [conformer, lstm])
def test_the_tandem_student_is_the_lone_student_step_for_step(make_config, make_model, batches, encoder):
    cfg = make_config(strategy="tandem", joint=ADDITIVE, student=encoder())
    pair, lone = make_model(strategy="tandem", joint=ADDITIVE, student=encoder()), lone_student(cfg)
    assert equal_states(student_state(pair), student_state(lone))
    ours, theirs = fit(pair, batches), fit(lone, batches)
    assert ours.norms == theirs.norms and min(ours.norms) > CLIP  # clipped in every step
    assert ours.losses == theirs.losses and len(set(ours.losses)) == STEPS
    assert equal_states(student_state(pair), student_state(lone))


def test_with_a_stock_joint_the_tandem_student_is_the_lone_student_to_rounding(make_config, make_model, batches):
    # NeMo's joint makes log-probabilities on CPU before its loss makes them again; the pair hands out raw logits.
    codert = {"rnnt_loss": "nemo"}
    cfg = make_config(strategy="tandem", joint=STOCK, codert=codert)
    pair, lone = make_model(strategy="tandem", joint=STOCK, codert=codert), lone_student(cfg)
    assert equal_states(student_state(pair), student_state(lone))
    few = [batches[0], batches[2]]  # the short ones: on a CPU NeMo's loss is a Python loop
    ours, theirs = fit(pair, few), fit(lone, few)
    # float32 recursion of NeMo: 1e-6 a step, amplified by AdamW where a gradient is near 0.
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert min(ours.norms) > CLIP


def test_one_norm_for_both_branches_would_scale_the_student_by_the_teacher(shared_pair, batches):
    """The control of the clipping test: the two branches are really clipped apart."""
    model = shared_pair(strategy="tandem", joint=ADDITIVE)
    model.training_step(batches[0], 0)["loss"].backward()
    model.configure_gradient_clipping(None, CLIP, "norm")
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert norm == pytest.approx(CLIP * 2**0.5, rel=1e-4)  # float32 rounding of two norms


def test_shared_parameters_are_clipped_once_with_the_teacher(shared_pair, batch):
    model = shared_pair(strategy="shared_kd", joint=ADDITIVE)
    model.training_step(batch, 0)["loss"].backward()
    teacher = model.teacher_transducer.parameters()
    student = list(model.student_encoder.parameters()) + list(model.student_joint.enc.parameters())
    model.configure_gradient_clipping(None, CLIP, "norm")
    for branch in (teacher, student):
        norm = torch.nn.utils.get_total_norm([p.grad for p in branch]).item()
        assert norm == pytest.approx(CLIP, rel=1e-4)  # float32 rounding


def test_an_optimizer_that_takes_the_scale_off_after_the_clipping_is_refused(make_model, batch):
    model = make_model(strategy="tandem", joint=ADDITIVE)
    model.training_step(batch, 0)["loss"].backward()
    for scaler, fused, refused in ((True, True, True), (True, False, False), (None, True, False)):
        model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        with pytest.raises(ValueError, match=r"model\.optim\.fused.*16-mixed") if refused else nullcontext():
            model.configure_gradient_clipping(optimizer, CLIP, "norm")


def test_the_students_initial_weights_depend_on_the_seed_alone(make_config):
    def weights(seed: int = 0, **settings) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        state = student_state(EncDecCoDERTBPEModel(make_config(joint=ADDITIVE, **settings)))
        return {name: value for name, value in state.items() if not name.startswith(("decoder.", "joint.pred."))}

    first = weights(strategy="tandem")
    assert equal_states(first, weights(strategy="tandem", teacher=conformer(layers=1, channels=40)))
    assert equal_states(first, weights(strategy="tandem", teacher=lstm()))
    for strategy in ("static", "tandem_kd", "shared_kd", "static_shared"):
        assert equal_states(first, weights(strategy=strategy))
    assert not equal_states(first, weights(seed=1, strategy="tandem"))


def test_building_a_student_leaves_the_process_generator_where_the_teacher_left_it(make_config):
    states = []
    for student in (conformer(), conformer(layers=2, channels=32)):
        torch.manual_seed(0)
        EncDecCoDERTBPEModel(make_config(strategy="tandem", student=student))
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)
