"""Pairs whose student is a TDT model with the durations of its TDT teacher."""

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.export.model_card import model_card
from nemo_codert.export.stock_file import save_model
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.layer_copy import start_from_teacher
from nemo_codert.models.open_model import open_model
from nemo_codert.models.stock_models import stock_class
from nemo_codert.modules import AdditiveRNNTJoint
from tests.conftest import ADDITIVE, SENTENCES, STOCK, conformer
from tests.models.teacher_files import CTC, DURATIONS, TDT, pair_config, save_teacher
from tests.models.training_runs import branch_losses, equal_states, moved_groups, train
from tests.reference import tdt_recursion

PLAIN = {"sigma": 0.05, "omega": 0.0}  # no draw: losses are compared
TERMS = {
    "encoder": {"prior": "mean_prediction"},
    "joint": {"at": "joint"},
    "occupied": {"at": "joint", "nodes": "occupied", "classes": "target_blank_rest"},
    "sequence": {"at": "sequence", "by": "l2"},
}
BOTH = pytest.mark.parametrize("joint", [ADDITIVE, STOCK], ids=["additive", "stock"])


def card(cfg, branch: str) -> str:
    return model_card(cfg, name="it", branch=branch, parameters=1000, record=None, results=[])


def tdt_config(make_config, joint: str, strategy: str = "tandem_kd", student: dict | None = None, **codert):
    """A pair of two TDT models."""
    cfg = OmegaConf.merge(make_config(strategy, joint), TDT, {"loss": {"tdt_kwargs": PLAIN}})
    return OmegaConf.merge(cfg, {"student": {"durations": DURATIONS, **(student or {})}, "codert": codert})


def built(cfg) -> EncDecCoDERTBPEModel:
    torch.manual_seed(0)
    return EncDecCoDERTBPEModel(cfg)


@pytest.fixture(scope="module")
def pairs(make_config):
    """A pair for each joint, with terms at encoder, joint and sequence, built once."""
    return {joint: built(tdt_config(make_config, joint, distillation=TERMS)) for joint in (ADDITIVE, STOCK)}


def outputs(model, batch, branch: str):
    """Output of one branch, and its joint's logits [B, T, U+1, V+1+N]."""
    features = model.extract_features(*batch[:2])
    output = getattr(model, f"{branch}_transducer").run(*features, *batch[2:])
    return output, output.networks.joint.joint_net(output.encoder_side[:, :, None] + output.prediction_side[:, None])


@BOTH
def test_the_losses_of_both_branches_are_tdt_losses(pairs, batch, joint):
    model = pairs[joint].eval()
    losses = branch_losses(model, batch)
    for branch in ("student", "teacher"):
        output, logits = outputs(model, batch, branch)
        pieces = len(model.joint.vocabulary)
        assert logits.shape[-1] == pieces + 1 + len(DURATIONS)
        lengths = output.encoded_len, batch[3]
        expected = tdt_recursion.joint_losses(logits, batch[2], *lengths, pieces, DURATIONS, PLAIN["sigma"]).mean()
        assert losses[f"train_rnnt_loss_{branch}"].item() == pytest.approx(expected.item(), rel=1e-5)


@BOTH
def test_a_term_at_the_joint_is_the_divergence_of_token_and_duration(pairs, batch, joint):
    model = pairs[joint].eval()
    found = branch_losses(model, batch)["train_distillation_loss_joint"]
    (student, of_student), (teacher, of_teacher) = (outputs(model, batch, branch) for branch in ("student", "teacher"))
    expected = 0.0
    for b, (t, u) in enumerate(zip(student.encoded_len.tolist(), batch[3].tolist(), strict=True)):
        for start, end in ((0, -len(DURATIONS)), (-len(DURATIONS), None)):
            log_q, log_p = (
                each[b, :t, : u + 1, start:end].double().log_softmax(-1) for each in (of_student, of_teacher)
            )
            expected += (log_p.exp() * (log_p - log_q)).sum() * (t + u) / (t * (u + 1))
    assert found.item() == pytest.approx((expected / len(batch[3])).item(), rel=1e-4)


def encoder_rows(output, joint_net, of_prior: bool) -> torch.Tensor:
    """Logits [B, T, V+1+N] of the encoder alone; with the prior, plus the mean over an utterance's states."""
    logits = joint_net(output.encoder_side.clone())
    if not of_prior:
        return logits
    states = zip(output.prediction_side, output.transcript_len.tolist(), strict=True)
    means = [joint_net(one[: u + 1].clone()).mean(0) for one, u in states]
    return logits + torch.stack(means)[:, None]


@BOTH
@pytest.mark.parametrize("prior", ["none", "mean_prediction"])
def test_a_term_at_the_encoder_adds_the_divergence_of_its_durations(make_config, batch, joint, prior):
    term = {"at": "encoder", "prior": prior, "durations_weight": 0.3, "temperature": 2.0}
    model = built(tdt_config(make_config, joint, distillation={"encoder": term})).eval()
    found = branch_losses(model, batch)["train_distillation_loss"]
    rows, lengths = [], None
    for branch in ("student", "teacher"):
        output, _ = outputs(model, batch, branch)
        lengths = output.encoded_len
        net = model.student_joint.joint_net if branch == "student" else model.joint.joint_net
        rows.append(encoder_rows(output, net, prior == "mean_prediction").double() / 2.0)
    expected = 0.0
    for weight, part in ((1.0, slice(None, -len(DURATIONS))), (0.3, slice(-len(DURATIONS), None))):
        log_q, log_p = (each[..., part].log_softmax(-1) for each in rows)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # [B, T]
        total = sum(divergence[b, :t].sum() for b, t in enumerate(lengths.tolist()))
        expected += weight * 2.0**2 * total / len(lengths)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    found.backward()
    weight = model.student_joint.enc.weight if joint == ADDITIVE else model.student_joint.joint_net[-1].weight
    assert weight.grad[-len(DURATIONS) :].abs().sum() > 0


@BOTH
def test_occupied_nodes_are_those_of_the_tdt_teachers_alignments(pairs, batch, joint):
    model = pairs[joint].eval()
    found = branch_losses(model, batch)["train_distillation_loss_occupied"]
    (student, of_student), (teacher, of_teacher) = (outputs(model, batch, branch) for branch in ("student", "teacher"))
    pieces, expected = len(model.joint.vocabulary), 0.0
    for b, (t, u) in enumerate(zip(student.encoded_len.tolist(), batch[3].tolist(), strict=True)):
        tokens = batch[2][b, :u]
        log_q, log_p = (each[b, :t, : u + 1].detach().double() for each in (of_student, of_teacher))
        weights = passing(log_p, tokens, pieces)
        weights *= (t + u) / weights.sum()
        for of_tokens, rows in ((True, slice(None, -len(DURATIONS))), (False, slice(-len(DURATIONS), None))):
            q, p = (each[..., rows].log_softmax(-1) for each in (log_q, log_p))
            if of_tokens:  # label, blank and all others
                q, p = (three_classes(each, tokens, pieces) for each in (q, p))
            expected += (weights[..., None] * (p.exp() * (p - q)).nan_to_num()).sum()
    assert found.item() == pytest.approx((expected / len(batch[3])).item(), rel=1e-4)


def passing(logits: torch.Tensor, tokens: torch.Tensor, blank: int) -> torch.Tensor:
    """Probability [T, U+1] that an alignment passes a node: the gradient of other classes' logits over their share."""
    logits = logits.clone().requires_grad_()
    lengths = torch.tensor([logits.shape[0]]), torch.tensor([len(tokens)])
    loss = tdt_recursion.joint_losses(logits[None], tokens[None], *lengths, blank, DURATIONS)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    others = torch.ones(len(tokens) + 1, blank)
    others[torch.arange(len(tokens)), tokens] = 0
    probs = logits.detach()[..., : blank + 1].softmax(-1)
    return (gradient[..., :blank] * others).sum(-1) / (probs[..., :blank] * others).sum(-1)


def three_classes(log_probs: torch.Tensor, tokens: torch.Tensor, blank: int) -> torch.Tensor:
    """Log-probabilities [T, U+1, 3] of next label, blank and all others."""
    probs = log_probs.exp()
    label = torch.cat([probs[:, torch.arange(len(tokens)), tokens], probs.new_zeros(len(probs), 1)], 1)
    return torch.stack([label, probs[..., blank], 1 - label - probs[..., blank]], -1).log()


@BOTH
def test_without_a_weight_of_durations_a_term_compares_tokens_alone(make_config, batch, joint):
    terms = {name: {"at": at} for name, at in (("encoder", "encoder"), ("joint", "joint"))}
    without = {name: {**term, "durations_weight": 0.0} for name, term in terms.items()}
    losses = [branch_losses(built(tdt_config(make_config, joint, distillation=of)), batch) for of in (terms, without)]
    for name in ("train_distillation_loss", "train_distillation_loss_joint"):
        assert 0 < losses[1][name] < losses[0][name]


@BOTH
def test_every_term_trains_the_student(pairs, batch, joint):
    model = pairs[joint]
    losses = branch_losses(model, batch)
    for name in TERMS:
        term = losses["train_distillation_loss" if name == "encoder" else f"train_distillation_loss_{name}"]
        model.zero_grad()
        term.backward(retain_graph=True)
        assert torch.isfinite(term) and {"student_encoder", "student_joint.enc"} <= moved_groups(model)
        assert not [group for group in moved_groups(model) if not group.startswith("student_")]


@BOTH
@pytest.mark.parametrize("strategy", ["shared_kd", "tandem_kd"])
def test_both_branches_learn_and_leave_as_tdt_models(make_config, batch, tmp_path, joint, strategy):
    cfg = tdt_config(make_config, joint, strategy)
    cfg.loss.tdt_kwargs.omega = 0.1
    model = built(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(value > 0 for value in train(model, [batch] * 3))
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"encoder", "joint", "student_encoder", "student_joint"} <= moved
    restored = open_model(save_model(model, tmp_path / "pair.nemo"))
    assert equal_states(restored.state_dict(), model.state_dict())
    for branch in ("student", "teacher"):
        stock = getattr(restored, f"{branch}_model")()
        stock.save_to(str(tmp_path / f"{branch}.nemo"))
        plain = EncDecRNNTBPEModel.restore_from(str(tmp_path / f"{branch}.nemo"), map_location="cpu").eval()
        assert list(plain.cfg.decoding.durations) == DURATIONS and plain.joint.num_extra_outputs == len(DURATIONS)
        assert "A transducer (TDT) for NVIDIA NeMo" in card(plain.cfg, branch)
        assert plain.cfg.loss.loss_name == "tdt" and plain.cfg.loss.tdt_kwargs.omega == 0.1


@BOTH
@pytest.mark.parametrize("strategy", ["greedy_batch", "malsd_batch"])
def test_the_student_decodes_in_nemo_as_in_the_pair(make_config, batch, joint, strategy):
    model = built(tdt_config(make_config, joint)).eval()
    stock = model.student_model()
    for decoded in (model, stock):
        settings = OmegaConf.merge(decoded.cfg.decoding, {"strategy": strategy})
        decoded.change_decoding_strategy(settings, verbose=False)
    features, lengths = model.extract_features(*batch[:2])
    encoded, lengths = model.student_encoder(audio_signal=features, length=lengths)[:2]
    texts = [
        [each.text for each in decoding.rnnt_decoder_predictions_tensor(encoded, lengths)]
        for decoding in (model.student_decoding, stock.decoding)
    ]
    assert texts[0] == texts[1] and any(texts[0])


def test_a_term_both_ways_takes_the_nodes_of_an_rnnt_student_too(make_config, batch):
    terms = {"both": {"at": "joint", "nodes": "occupied", "both_ways": True}}
    cfg = tdt_config(make_config, STOCK, "tandem", student={"durations": None})
    cfg.codert.distillation = terms
    model = built(cfg)
    losses = branch_losses(model, batch)
    losses["train_distillation_loss_both"].backward()
    assert {"student_encoder", "encoder"} <= moved_groups(model)


@pytest.mark.parametrize("at", ["encoder", "joint"])
def test_durations_of_other_frames_are_not_compared(make_config, batch, at):
    student = {"encoder": conformer(layers=1, channels=16, subsampling=8)}
    cfg = tdt_config(make_config, STOCK, "tandem", student=student)
    cfg.codert.distillation = {"term": {"at": at}}
    with pytest.raises(ValueError, match="term.durations_weight is 1.0 but the teacher has 2 frames for each"):
        built(cfg)
    cfg.codert.distillation.term.durations_weight = 0.0
    assert all(value > 0 for value in train(built(cfg), [batch]))


def test_a_frozen_stock_teacher_trains_an_additive_tdt_student(make_config, batch, tmp_path):
    path, teacher = save_teacher(make_config, tmp_path, "tdt")
    cfg = pair_config(make_config, "tdt", path, {"distillation": TERMS})
    cfg.student.durations, cfg.student.joint = DURATIONS, {"_target_": ADDITIVE, "jointnet": {}}
    model = built(cfg)
    assert isinstance(model.student_joint, AdditiveRNNTJoint)
    before = {name: value.clone() for name, value in teacher.joint.state_dict().items()}
    assert all(value > 0 for value in train(model, [batch] * 2))
    assert equal_states(before, model.joint.state_dict())
    assert model.student_model().joint.num_extra_outputs == len(DURATIONS)


@pytest.mark.parametrize("loss_name", ["tdt", "tdt_pytorch"])
def test_the_lone_student_is_a_tdt_model_with_the_exact_loss(make_config, batch, loss_name):
    cfg = tdt_config(make_config, ADDITIVE, "tandem")
    cfg.loss = {"loss_name": loss_name, f"{loss_name}_kwargs": cfg.loss.tdt_kwargs}
    pair, stock = built(cfg), student_config(cfg)
    torch.manual_seed(0)
    lone = stock_class(stock)(stock)
    start = {name.removeprefix("student_"): v for name, v in pair.state_dict().items() if name.startswith("student_")}
    own = {name: v for name, v in lone.state_dict().items() if name.split(".")[0] in ("encoder", "decoder", "joint")}
    assert equal_states(start, own)
    output, logits = outputs(pair.eval(), batch, "student")
    lengths, pieces = (output.encoded_len, batch[3]), len(pair.joint.vocabulary)
    expected = tdt_recursion.joint_losses(logits, batch[2], *lengths, pieces, DURATIONS, PLAIN["sigma"]).mean()
    encoded, encoded_len = lone.eval()(input_signal=batch[0], input_signal_length=batch[1])
    decoded = lone.decoder(targets=batch[2], target_length=batch[3])[0]
    given = {"encoder_lengths": encoded_len, "transcripts": batch[2], "transcript_lengths": batch[3]}
    found = lone.joint(encoder_outputs=encoded, decoder_outputs=decoded, **given)[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_tdt_student_starts_from_its_teachers_joint_with_durations(make_config):
    cfg = tdt_config(make_config, STOCK)
    cfg.student.encoder = {**cfg.encoder, "n_layers": 1}
    model = built(cfg)
    assert not start_from_teacher(model.teacher_transducer, model.student_transducer, decoder=True)["left"]
    assert equal_states(model.student_joint.state_dict(), model.joint.state_dict())


def test_an_averaged_teacher_is_a_tdt_model_as_its_student(make_config, batch):
    cfg = tdt_config(make_config, ADDITIVE, "tandem_kd", teacher="ema")
    model = built(cfg)
    assert model.joint.num_extra_outputs == len(DURATIONS)
    assert all(value > 0 for value in train(model, [batch] * 2))


def test_another_vocabulary_keeps_the_durations(make_config, tmp_path, batch):
    model = built(tdt_config(make_config, STOCK))
    train_tokenizer([*SENTENCES, "quite other words jump over foxes"], tmp_path, vocab_size=40)
    model.change_vocabulary(str(tmp_path), "bpe")
    for joint in (model.student_joint, model.joint):
        assert joint.num_extra_outputs == len(DURATIONS) and joint.joint_net[-1].out_features == 41 + len(DURATIONS)
    output, logits = outputs(model.eval(), batch, "student")
    loss = branch_losses(model, batch)["train_rnnt_loss_student"]
    lengths = output.encoded_len, batch[3]
    expected = tdt_recursion.joint_losses(logits, batch[2], *lengths, 40, DURATIONS, PLAIN["sigma"]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(value > 0 for value in train(model, [batch] * 2))


def test_durations_that_nothing_would_train_are_refused(make_config):
    codert = {"teacher": "frozen", "share_decoder": True, "student_loss_weight": 0.0, "teacher_logits": "ctc"}
    cfg = tdt_config(
        make_config, STOCK, "static_shared", distillation={"encoder": {"durations_weight": 0.5}}, **codert
    )
    with pytest.raises(ValueError, match="no term with a durations_weight above 0 would train the durations"):
        checked_config(OmegaConf.merge(cfg, CTC))
