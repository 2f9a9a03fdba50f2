"""A source of teaching defined in this file: one entry in the table, and `codert.teacher` can name it."""

import torch

from nemo_codert.config.teachers import TEACHERS
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.teachers import build_teacher
from nemo_codert.teachers.live import CoTrained, Frozen


class Shifted(CoTrained):
    """A teacher whose frames come from features that are one mel bin off; it keeps the ids that it was given."""

    def output(self, features, features_len, batch, student, layers=()):
        self.seen = batch.sample_id
        return super().output(features.roll(1, dims=1), features_len, batch, student, layers)


def test_the_table_leads_from_the_config_to_the_class(make_config):
    codert = make_config("static").codert
    assert type(build_teacher(None, codert)) is Frozen
    assert type(build_teacher(None, make_config("tandem").codert)) is CoTrained


def test_a_new_source_is_one_entry(monkeypatch, make_config, batch):
    monkeypatch.setitem(TEACHERS, "shifted", Shifted)
    losses = {}
    for name in ("co_trained", "shifted"):
        torch.manual_seed(0)
        model = EncDecCoDERTBPEModel(make_config("tandem_kd", codert={"teacher": name})).train()
        model.training_step((*batch, ["a", "b", "c", "d"]), 0)["loss"].backward()
        losses[name] = {key: float(value) for key, value in model.step_losses.items()}
    same, moved = "train_rnnt_loss_student", ("train_rnnt_loss_teacher", "train_distillation_loss")
    assert losses["shifted"][same] == losses["co_trained"][same]
    assert all(losses["shifted"][name] != losses["co_trained"][name] for name in moved)
