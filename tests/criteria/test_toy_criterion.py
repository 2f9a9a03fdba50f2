"""A criterion defined in this file: one entry in the table, and it is built from a YAML, checked and trained."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nemo_codert.config.checked import checked_config
from nemo_codert.config.criteria import CRITERIA, CriterionKind, TermConfig, criteria_specs, distillation_terms
from nemo_codert.criteria import Criterion
from nemo_codert.models import EncDecCoDERTBPEModel
from tests.models.training_runs import branch_losses, equal_states, train

YAML = """
codert:
  share_decoder: false
  distillation:
    encoder: {weight: 0.1, temperature: 2.0}
    likeness: {at: hidden, by: likeness, weight: 0.5, from_step: 1, until_step: 3, power: 4.0}
"""


@dataclass
class LikenessConfig(TermConfig):
    """Keys of the toy term."""

    power: float = 2.0


def likeness_problems(term: DictConfig, path: str) -> Iterator[str]:
    if term.power < 1:
        yield f"{path}.power is {term.power}, wanted 1 or above"


class Likeness(Criterion):
    """Distance of the mean frames, the student's through a projection that dies with the pair."""

    def __init__(self, spec, parts) -> None:
        super().__init__(spec, parts)
        self.projection = nn.Linear(parts.student.joint.encoder_hidden, parts.teacher.joint.encoder_hidden)

    def forward(self, student, teacher, batch):
        projected = self.projection(student.encoded.mean(-1))  # [B, D]
        return (projected - teacher.encoded.detach().mean(-1)).abs().pow(self.spec.options["power"]).mean()


@pytest.fixture
def toy(monkeypatch):
    """The one entry in the table."""
    monkeypatch.setitem(CRITERIA, "hidden.likeness", CriterionKind(Likeness, LikenessConfig, likeness_problems))


@pytest.fixture
def toy_config(toy, make_config, tmp_path):
    """A pair's config with the term, out of a YAML file."""
    (tmp_path / "toy.yaml").write_text(YAML)

    def make(strategy: str = "tandem_kd", **changes):
        cfg = OmegaConf.merge(make_config(strategy), {"codert": {"distillation": None}})
        cfg = OmegaConf.merge(cfg, OmegaConf.load(tmp_path / "toy.yaml"))
        return OmegaConf.merge(cfg, {"codert": {"distillation": {"likeness": changes}}})

    return make


def test_the_specs_list_the_term_beside_the_others(toy_config):
    specs = {spec.name: spec for spec in checked_config(toy_config()).criteria}
    assert list(specs) == ["rnnt_student", "rnnt_teacher", "encoder", "likeness"]
    assert specs["likeness"].log_names == ["train_distillation_loss_likeness", "train_distillation_weight_likeness"]
    assert specs["likeness"].options == {"power": 4.0}
    assert [specs["likeness"].weight_at(step) for step in range(4)] == [0.0, 0.5, 0.5, 0.0]
    assert specs["encoder"].options == {
        **{"temperature": 2.0, "temperature_floor": 0.5, "prior": "none", "reduction": "per_utterance"},
        **{"frame_shift": 0, "both_ways": False, "durations_weight": 1.0},
    }


@pytest.mark.parametrize("changes, fault", [
    ({"power": 0.5}, "model.codert.distillation.likeness.power is 0.5, wanted 1 or above"),
    ({"pover": 2}, "model.codert.distillation.likeness.pover is not a key of this version, known are at, by, weight"),
    ({"weight": -1}, "model.codert.distillation.likeness.weight is -1.0, wanted a number that is 0 or above"),
    ({"until_step": 1}, "model.codert.distillation.likeness.until_step is 1, wanted a step after from_step (1)"),
    ({"by": "distance"}, "likeness has at.by 'hidden.distance', wanted one of encoder.kl, hidden.mse, "),
])  # fmt: skip
def test_its_values_are_checked_by_name(toy_config, changes, fault):
    with pytest.raises(ValueError) as refused:
        checked_config(toy_config(**changes))
    assert fault in str(refused.value)


def test_keys_of_a_single_term_and_named_terms_are_not_mixed(toy_config):
    cfg = OmegaConf.merge(toy_config(), {"codert": {"distillation": {"temperature": 3.0}}})
    del cfg.codert.distillation["encoder"]
    with pytest.raises(ValueError, match="distillation.temperature stands beside named terms.*Move temperature into"):
        checked_config(cfg)


def test_flat_keys_beside_a_term_encoder_are_its_own_where_it_lacks_them(toy_config):
    flat = {"ramp_steps": 7, "weight": 0.7}
    cfg = OmegaConf.merge(toy_config(), {"codert": {"distillation": {**flat, "encoder": {"weight": 0.2}}}})
    terms = checked_config(cfg).codert.distillation
    assert (terms.encoder.weight, terms.encoder.ramp_steps) == (0.2, 7) and "likeness" in terms
    cfg = OmegaConf.merge(toy_config(), {"codert": {"distillation": {**flat, "encoder": None}}})
    assert list(checked_config(cfg).codert.distillation) == ["likeness"]


@pytest.mark.parametrize("name", ["rnnt_student", "ctc_student", "rnnt_teacher", "Encoder", "a.b"])
def test_a_term_cannot_take_the_name_of_a_branchs_own_loss(toy_config, name):
    cfg = OmegaConf.merge(toy_config(), {"codert": {"distillation": {name: {"weight": 0.1}}}})
    with pytest.raises(ValueError, match=f"distillation.{name} is not a name for a term"):
        checked_config(cfg)


def test_a_name_that_torch_has_taken_is_refused_by_name(toy_config):
    cfg = OmegaConf.merge(toy_config(), {"codert": {"distillation": {"values": {"weight": 0.1}}}})
    with pytest.raises(ValueError, match="distillation.values: torch's modules have an attribute of that name"):
        EncDecCoDERTBPEModel(cfg)


def test_a_term_of_weight_0_is_left_out_with_its_parameters_and_its_weight_is_logged(toy_config):
    model = EncDecCoDERTBPEModel(toy_config(weight=0.0))
    assert list(model.criteria) == ["rnnt_student", "rnnt_teacher", "encoder"]
    assert model.criteria.weights(1)["train_distillation_weight_likeness"] == 0.0


def test_a_flat_block_is_one_term_named_encoder():
    flat = OmegaConf.create({"weight": 0.3, "start_step": 7})
    assert distillation_terms(flat) == {
        "encoder": {
            **{"at": "encoder", "by": "kl", "weight": 0.3, "from_step": 7, "until_step": None, "ramp_steps": 0},
            **{"temperature": 1.0, "temperature_floor": 0.5, "prior": "none", "reduction": "per_utterance"},
            **{"frame_shift": 0, "both_ways": False, "durations_weight": 1.0},
        }
    }
    named = OmegaConf.create({"encoder": {"at": "encoder", "by": "kl", "weight": 0.3, "from_step": 7}})
    assert criteria_specs(_with(flat))[-1].weight_at(7) == 0.3
    assert distillation_terms(named).keys() == {"encoder"}


def _with(distillation) -> DictConfig:
    codert = {"teacher": "frozen", "student_loss_weight": 1.0, "distillation": distillation}
    return OmegaConf.create({"student": {"aux_ctc": None}, "codert": codert})


def test_a_named_encoder_term_is_the_flat_block_to_the_bit(make_config, batch):
    block = {"weight": 0.3, "temperature": 2.0, "reduction": "per_frame", "frame_shift": 1}
    losses = []
    for distillation in (block, {"encoder": {"at": "encoder", "by": "kl", **block}}):
        cfg = OmegaConf.merge(make_config("shared_kd"), {"codert": {"distillation": None}})
        torch.manual_seed(0)
        model = EncDecCoDERTBPEModel(OmegaConf.merge(cfg, {"codert": {"distillation": distillation}}))
        losses.append({name: float(value) for name, value in branch_losses(model, batch).items()})
    assert losses[0] == losses[1] and "train_distillation_loss" in losses[0]


def test_it_trains_with_its_own_parameters_and_leaves_no_trace_in_the_student(toy_config, batch, tmp_path):
    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(toy_config(from_step=0, until_step=None))
    parts = branch_losses(model, batch)
    weighted = parts["train_rnnt_loss_student"] + parts["train_rnnt_loss_teacher"]
    weighted = weighted + 0.1 * parts["train_distillation_loss"] + 0.5 * parts["train_distillation_loss_likeness"]
    torch.testing.assert_close(parts["train_loss"], weighted)
    weight, before = model.criteria["likeness"].projection.weight, {}
    before = weight.detach().clone()
    train(model, 3 * [batch], clip=5.0)
    assert not torch.equal(weight, before)
    assert "train_distillation_loss_likeness" in model.step_losses
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    assert not [name for name in model.student_model().state_dict() if "likeness" in name or "criteria" in name]


def test_its_parameters_change_no_initial_weight_of_the_networks(toy_config, make_model):
    torch.manual_seed(0)
    with_term = EncDecCoDERTBPEModel(toy_config()).state_dict()
    without = make_model("tandem_kd").state_dict()
    assert equal_states({name: with_term[name] for name in without}, without)
    assert {name for name in with_term if name not in without} == {
        "criteria.likeness.projection.weight", "criteria.likeness.projection.bias",
    }  # fmt: skip


def test_its_gradient_is_clipped_with_the_student(toy_config, batch):
    model = EncDecCoDERTBPEModel(toy_config(weight=1000.0, from_step=0, until_step=None))
    branch_losses(model, batch)["train_loss"].backward()
    model.configure_gradient_clipping(torch.optim.SGD(model.parameters()), 0.5, "norm")
    student = [*model.student_transducer.parameters(), *model.criteria.parameters_of("student")]
    gradients = [parameter.grad for parameter in student if parameter.grad is not None]
    assert float(torch.nn.utils.get_total_norm(gradients)) == pytest.approx(0.5, rel=1e-4)


def test_outside_its_steps_it_is_not_computed(toy_config, batch):
    model = EncDecCoDERTBPEModel(toy_config())
    assert "train_distillation_loss_likeness" not in branch_losses(model, batch, step=0)
    assert "train_distillation_loss_likeness" in branch_losses(model, batch, step=1)
    assert model.criteria.weights(1) == {"train_distillation_weight": 0.1, "train_distillation_weight_likeness": 0.5}
