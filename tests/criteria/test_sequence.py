"""Full-sum distillation in a pair: against the plain recursion, for both joints, shared decoders and TDT teachers."""

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.modules.encoder_logits import joint_logits
from tests.conftest import ADDITIVE, STOCK
from tests.models.teacher_files import TDT
from tests.models.training_runs import branch_losses
from tests.reference.rnnt_recursion import joint_losses

TERM = {"seq": {"at": "sequence", "by": "l2", "weight": 0.5}}


def with_term(cfg):
    cfg.codert.distillation = TERM
    return cfg


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
@pytest.mark.parametrize("strategy", ["tandem_kd", "shared_kd"])
def test_it_is_the_squared_difference_of_the_log_likelihoods(make_config, batch, joint, strategy):
    from nemo_codert.models import EncDecCoDERTBPEModel

    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(with_term(make_config(strategy, joint)))
    parts = branch_losses(model, batch)
    signal, signal_len, transcript, transcript_len = batch
    features = model.extract_features(signal, signal_len)
    losses, frames = [], None
    for branch in (model.student_transducer, model.teacher_transducer):
        encoded, frames = branch.encoder(audio_signal=features[0], length=features[1])
        decoded, _, _ = branch.decoder(targets=transcript, target_length=transcript_len)
        logits = joint_logits(branch.joint, encoded, decoded)
        losses.append(joint_losses(logits, transcript, frames, transcript_len, blank=32))
    expected = ((losses[0] - losses[1]) ** 2 / (frames + transcript_len)).mean()
    value = parts["train_distillation_loss_seq"]
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)  # a difference of float32 losses near 100 nats
    value.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    own = {"student_encoder", "student_joint"}
    assert moved == own | ({"student_decoder"} if strategy == "tandem_kd" else set())


def test_a_tdt_teacher_of_a_standard_student_is_refused(make_config):
    cfg = OmegaConf.merge(with_term(make_config("static", STOCK)), TDT, {"codert": {"teacher_checkpoint": "t.nemo"}})
    with pytest.raises(ValueError, match="distillation.seq compares log-likelihoods but the teacher is a TDT model"):
        checked_config(cfg)
