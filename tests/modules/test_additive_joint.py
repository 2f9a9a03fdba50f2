"""The additive joint, its stock rewriting, and its exact loss inside NeMo's own fused training step."""

import logging

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import RNNTJoint

from nemo_codert.models import student_config
from nemo_codert.modules import AdditiveRNNTJoint, to_stock_joint
from nemo_codert.modules.encoder_logits import joint_logits
from tests.conftest import ADDITIVE, STOCK

D_ENC, D_PRED = 6, 5


def make_joint(joint_class: type = AdditiveRNNTJoint, V: int = 9, **jointnet) -> RNNTJoint:
    jointnet = {"encoder_hidden": D_ENC, "pred_hidden": D_PRED, "joint_hidden": 7, "activation": "relu", **jointnet}
    return joint_class(jointnet=jointnet, num_classes=V, vocabulary=[str(v) for v in range(V)], log_softmax=False)


def frames(B: int = 2, T: int = 5, U: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, D_ENC, T), torch.randn(B, D_PRED, U + 1)


@torch.no_grad()
def outputs(joint: RNNTJoint, encoded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    return joint(encoder_outputs=encoded, decoder_outputs=decoded)


def test_the_output_is_the_sum_of_the_two_projections():
    joint = make_joint()
    encoded, decoded = frames()
    total = joint.enc(encoded.transpose(1, 2))[:, :, None] + joint.pred(decoded.transpose(1, 2))[:, None]
    torch.testing.assert_close(outputs(joint, encoded, decoded), total.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("V", [31, 32, 40])
def test_the_exact_form_differs_by_nothing_on_a_real_number_of_rows(V):
    # Fewer than 8 rows, or fewer than 16 classes, are multiplied by other routines of the BLAS library, which may
    # round a product with W and one with [W; -W] differently: there the next test holds.
    joint = make_joint(V=V)
    stock = to_stock_joint(joint, "exact")
    encoded, decoded = frames(B=2, T=25, U=9)
    assert type(stock) is RNNTJoint and stock.joint_hidden == 2 * (V + 1)
    assert (outputs(stock, encoded, decoded) - outputs(joint, encoded, decoded)).abs().max() == 0.0


@pytest.mark.parametrize("form", ["exact", "compact", "narrow"])
def test_all_forms_are_equal_to_rounding_on_any_number_of_rows(form):
    joint = make_joint()
    stock = to_stock_joint(joint, form)
    for shape in ({}, {"B": 1, "T": 1, "U": 0}):
        encoded, decoded = frames(**shape)
        # Float32 sums of D_ENC + D_PRED = 11 terms of size 1 in another order; 4e-7 seen.
        torch.testing.assert_close(
            outputs(stock, encoded, decoded), outputs(joint, encoded, decoded), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize(
    "V, hidden", [(D_ENC + D_PRED - 1, 2 * (D_ENC + D_PRED)), (3, 2 * 4), (40, 2 * (D_ENC + D_PRED))]
)
def test_auto_takes_the_smaller_hidden_layer(V, hidden):
    assert to_stock_joint(make_joint(V=V)).joint_hidden == hidden


def test_auto_is_exact_where_both_forms_are_of_equal_size():
    stock = to_stock_joint(make_joint(V=D_ENC + D_PRED - 1))
    identity = torch.eye(D_ENC + D_PRED)
    assert torch.equal(stock.joint_net[-1].weight, torch.cat([identity, -identity], dim=1))


def test_a_stock_joint_is_copied_as_it_is():
    joint = make_joint(RNNTJoint, dropout=0.25)
    copy = to_stock_joint(joint)
    encoded, decoded = frames()
    assert copy is not joint and copy.enc.weight is not joint.enc.weight
    assert copy.joint_hidden == 7 and copy.activation == "relu"
    assert [layer.p for layer in copy.joint_net if isinstance(layer, torch.nn.Dropout)] == [0.25]
    assert torch.equal(outputs(copy.eval(), encoded, decoded), outputs(joint.eval(), encoded, decoded))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'small', wanted one of auto, exact, compact, narrow"):
        to_stock_joint(make_joint(), "small")


@pytest.mark.parametrize("form", ["exact", "compact", "narrow"])
def test_rewriting_a_stock_joint_is_refused(form):
    with pytest.raises(ValueError, match=f"{form}.*stock RNNTJoint already: use auto"):
        to_stock_joint(make_joint(RNNTJoint), form)


def test_dropout_is_warned_of_and_has_no_effect(caplog):
    with caplog.at_level(logging.WARNING, logger="nemo_codert"):
        joint = make_joint(dropout=0.5).train()
    assert "joint.jointnet.dropout has no effect" in caplog.text
    encoded, decoded = frames()
    assert torch.equal(outputs(joint, encoded, decoded), outputs(joint, encoded, decoded))


def test_no_dropout_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="nemo_codert"):
        make_joint(dropout=0.0)
    assert not caplog.text


def fused_and_unfused(make_config, fastemit: float) -> list[EncDecRNNTBPEModel]:
    """The same lone student with the exact loss inside NeMo's fused step, and with NeMo's own loss and kernel."""
    models = []
    for rnnt_loss in ("exact", "nemo"):
        cfg = make_config(joint=ADDITIVE, codert={"rnnt_loss": rnnt_loss})
        cfg.loss.warprnnt_numba_kwargs.fastemit_lambda = fastemit
        torch.manual_seed(0)
        models.append(EncDecRNNTBPEModel(student_config(cfg)))
    return models


def nemo_training_loss(model: EncDecRNNTBPEModel, batch) -> torch.Tensor:
    """The loss as NeMo's `training_step` computes it, without a trainer to log to."""
    signal, signal_len, transcript, transcript_len = batch
    encoded, encoded_len = model(input_signal=signal, input_signal_length=signal_len)
    decoded, target_len, _ = model.decoder(targets=transcript, target_length=transcript_len)
    if not model.joint.fuse_loss_wer:
        log_probs = model.joint(encoder_outputs=encoded, decoder_outputs=decoded)
        return model.loss(
            log_probs=log_probs, targets=transcript, input_lengths=encoded_len, target_lengths=target_len
        )
    loss, wer, _, _ = model.joint(
        encoder_outputs=encoded,
        decoder_outputs=decoded,
        encoder_lengths=encoded_len,
        transcripts=transcript,
        transcript_lengths=transcript_len,
        compute_wer=False,
    )
    assert wer is None
    return loss


@pytest.mark.parametrize("fastemit", [0.0, 0.01])
def test_nemos_fused_step_has_the_loss_and_gradients_of_nemos_own_loss(make_config, batch, fastemit):
    fused, unfused = fused_and_unfused(make_config, fastemit)
    assert fused.joint.fuse_loss_wer and not unfused.joint.fuse_loss_wer
    losses = [nemo_training_loss(model, batch) for model in (fused, unfused)]
    for loss in losses:
        loss.backward()
    # NeMo's recursion is float32: 6e-6 relative at logits of standard deviation 1.
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-5, atol=0)
    theirs = dict(unfused.named_parameters())
    for name, parameter in fused.named_parameters():
        scale = float(theirs[name].grad.abs().max())
        # The same float32 recursion seen through the encoder, and gradients of biases that cancel to rounding.
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-3 * scale + 1e-4, msg=name)


def test_the_fused_step_measures_the_word_errors_of_the_whole_batch(make_config, batch):
    model = fused_and_unfused(make_config, 0.0)[0].eval()
    signal, signal_len, transcript, transcript_len = batch
    encoded, encoded_len = model(input_signal=signal, input_signal_length=signal_len)
    decoded, _, _ = model.decoder(targets=transcript, target_length=transcript_len)
    fused = dict(encoder_outputs=encoded, encoder_lengths=encoded_len, transcripts=transcript)
    fused.update(transcript_lengths=transcript_len, compute_wer=True)
    loss, _, errors, words = model.joint(decoder_outputs=decoded, **fused)
    model.wer.update(
        predictions=encoded, predictions_lengths=encoded_len, targets=transcript, targets_lengths=transcript_len
    )
    _, plain_errors, plain_words = model.wer.compute()
    assert torch.isfinite(loss) and errors == plain_errors and words == plain_words == 18
    assert model.joint(decoder_outputs=None, **fused)[0] is None  # evaluation without a loss


def test_a_stock_joint_config_keeps_its_own_fuse_settings(make_config):
    assert not student_config(make_config(joint=STOCK)).joint.get("fuse_loss_wer")


def test_the_joint_logits_are_raw_in_both_classes():
    encoded, decoded = frames()
    for joint in (make_joint(), make_joint(RNNTJoint)):
        raw = outputs(joint, encoded, decoded)
        torch.testing.assert_close(joint_logits(joint, encoded, decoded).detach(), raw, rtol=0, atol=0)
        joint.log_softmax = None  # NeMo then returns log-probabilities on CPU
        assert torch.equal(joint_logits(joint, encoded, decoded).detach(), raw)
