"""Students that are hybrid RNN-T/CTC models: trained as NeMo trains its own, distilled as any, leaving as stock."""

import copy

import onnxruntime
import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.export.stock_file import export_onnx, save_model, stock_of
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from nemo_codert.models.build_faults import try_networks
from nemo_codert.models.open_model import open_model
from nemo_codert.models.stock_models import stock_class
from tests.conftest import ADDITIVE, SENTENCES, STOCK
from tests.models.teacher_files import CTC, pair_config
from tests.models.training_runs import branch_losses, equal_states, shortest, train

JOINTS = {"additive": ADDITIVE, "stock": STOCK}


@pytest.fixture
def hybrid_config(make_config):
    """`make_config` with a hybrid student."""

    def make(*args, reduction: str = "mean_batch", **kwargs):
        cfg = make_config(*args, **kwargs)
        with open_dict(cfg):
            cfg.student.aux_ctc = copy.deepcopy(CTC["aux_ctc"])
            cfg.student.aux_ctc.ctc_reduction = reduction
        return cfg

    return make


@pytest.fixture
def make_hybrid(hybrid_config):
    """Factory of pairs with a hybrid student, seeded."""

    def make(*args, **kwargs) -> EncDecCoDERTBPEModel:
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(hybrid_config(*args, **kwargs))

    return make


@pytest.mark.parametrize("strategy, reduction", [("shared_kd", "mean_batch"), ("static", "mean_volume")])
def test_the_ctc_loss_is_nemos_and_has_its_share(make_hybrid, batch, strategy, reduction):
    model = make_hybrid(strategy, STOCK, reduction=reduction)
    stock = model.student_model()
    losses = branch_losses(model, batch)
    features, features_len = model.extract_features(*batch[:2])
    encoded, lengths = stock.encoder(audio_signal=features, length=features_len)
    log_probs = stock.ctc_decoder(encoder_output=encoded)
    ctc = stock.ctc_loss(log_probs=log_probs, targets=batch[2], input_lengths=lengths, target_lengths=batch[3])
    torch.testing.assert_close(losses["train_ctc_loss_student"], ctc)
    total = 0.7 * losses["train_rnnt_loss_student"] + 0.3 * ctc + 0.1 * losses["train_distillation_loss"]
    total = total + losses.get("train_rnnt_loss_teacher", 0.0)
    torch.testing.assert_close(losses["train_loss"], total)


@pytest.mark.parametrize("joint", JOINTS)
def test_without_teacher_the_pairs_student_follows_nemos_hybrid_step_for_step(hybrid_config, batch, joint):
    batch = shortest(batch)
    cfg = hybrid_config("tandem", JOINTS[joint], codert={"rnnt_loss": "auto" if joint == "additive" else "nemo"})
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(cfg)
    stock_cfg = student_config(cfg)
    torch.manual_seed(0)
    lone = stock_class(stock_cfg)(stock_cfg)
    assert type(lone) is EncDecHybridRNNTCTCBPEModel
    start = {name.removeprefix("student_"): v for name, v in pair.state_dict().items() if name.startswith("student_")}
    assert all(torch.equal(value, lone.state_dict()[name]) for name, value in start.items())

    def loss_of_lone(batch) -> torch.Tensor:
        features, features_len = pair.extract_features(*batch[:2])
        frames = lone.encoder(audio_signal=features, length=features_len)
        decoded = lone.decoder(targets=batch[2], target_length=batch[3])[0]
        if lone.joint.fuse_loss_wer:
            rnnt = lone.joint(
                encoder_outputs=frames[0],
                decoder_outputs=decoded,
                encoder_lengths=frames[1],
                transcripts=batch[2],
                transcript_lengths=batch[3],
                compute_wer=False,
            )[0]
        else:
            logits = lone.joint(encoder_outputs=frames[0], decoder_outputs=decoded)
            rnnt = lone.loss(log_probs=logits, targets=batch[2], input_lengths=frames[1], target_lengths=batch[3])
        ctc = lone.ctc_loss(
            log_probs=lone.ctc_decoder(encoder_output=frames[0]),
            targets=batch[2],
            input_lengths=frames[1],
            target_lengths=batch[3],
        )
        return (1 - lone.ctc_loss_weight) * rnnt + lone.ctc_loss_weight * ctc

    def loss_of_student(batch) -> torch.Tensor:
        losses = branch_losses(pair, batch)
        return 0.7 * losses["train_rnnt_loss_student"] + 0.3 * losses["train_ctc_loss_student"]

    expected = train(lone, [batch] * 4, loss_of_lone)
    assert train(pair, [batch] * 4, loss_of_student) == pytest.approx(expected, rel=1e-5)


def test_the_head_is_trained_clipped_and_saved_with_the_student(make_hybrid, batch, tmp_path):
    model = make_hybrid("shared_kd")
    before = model.student_ctc_decoder.decoder_layers[0].weight.clone()
    model.training_step(batch, 0)["loss"].backward()
    model.configure_gradient_clipping(None, 1e-3, "norm")
    assert 0 < model.student_ctc_decoder.decoder_layers[0].weight.grad.norm() <= 1e-3
    train(model, [batch], clip=1.0)
    assert not torch.equal(model.student_ctc_decoder.decoder_layers[0].weight, before)
    assert not any(name.startswith("ctc_decoder.") for name in model.state_dict())
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    assert equal_states(restored.student_model().state_dict(), model.student_model().state_dict())


@pytest.mark.parametrize("joint", JOINTS)
def test_the_student_leaves_as_nemos_hybrid_and_both_its_heads_transcribe(
    make_hybrid, batch, manifest, tmp_path, joint
):
    model = make_hybrid("shared_kd", JOINTS[joint])
    train(model, [batch] * 2)
    path = save_model(stock_of(model), tmp_path / "student.nemo")
    student = ASRModel.restore_from(str(path), map_location="cpu")
    assert type(student) is EncDecHybridRNNTCTCBPEModel and "student" not in student.cfg
    assert type(model.teacher_model()) is EncDecRNNTBPEModel
    audio = [str(manifest.parent / f"{i}.wav") for i in range(3)]
    texts = [said.text for said in student.transcribe(audio, verbose=False)]
    assert texts == [said.text for said in model.transcribe(audio, verbose=False)]
    assert texts == [said.text for said in stock_of(open_model(path)).transcribe(audio, verbose=False)]
    model.eval(), student.eval()
    features = model.extract_features(*batch[:2])
    frames = model.student_encoder(audio_signal=features[0], length=features[1])[0]
    heads = [head(encoder_output=frames) for head in (model.student_ctc_decoder, student.ctc_decoder)]
    assert torch.equal(*heads)
    student.change_decoding_strategy(decoder_type="ctc")
    assert len(student.transcribe(audio, verbose=False)) == 3


def test_a_hybrid_student_exports_its_rnnt_to_onnx(make_hybrid, tmp_path):
    encoder, decoder = export_onnx(make_hybrid("shared_kd"), tmp_path / "student.onnx")
    outputs = onnxruntime.InferenceSession(str(decoder)).get_outputs()
    assert onnxruntime.InferenceSession(str(encoder)).get_outputs() and outputs[0].shape[-1] == 33


def test_a_new_vocabulary_gives_the_head_new_classes(make_hybrid, batch, tmp_path):
    model = make_hybrid("shared_kd")
    folder = train_tokenizer(SENTENCES, tmp_path / "larger", vocab_size=40)
    model.change_vocabulary(str(folder), "bpe")
    assert model.student_ctc_decoder.num_classes_with_blank == 41
    assert model.student_model().ctc_decoder.num_classes_with_blank == 41
    assert torch.isfinite(branch_losses(model, batch)["train_ctc_loss_student"])


def test_a_hybrid_tdt_teacher_may_have_a_hybrid_student(make_config, saved_teacher, tmp_path, batch):
    path, _ = saved_teacher(tmp_path, "hybrid_tdt")
    cfg = pair_config(make_config, "hybrid_tdt", path, {"teacher_logits": "ctc"})
    with open_dict(cfg):
        cfg.student.aux_ctc = CTC["aux_ctc"]
    model = EncDecCoDERTBPEModel(cfg)
    assert {"train_ctc_loss_student", "train_distillation_loss"} <= branch_losses(model, batch).keys()
    student = model.student_model()
    assert type(student) is EncDecHybridRNNTCTCBPEModel and not student.joint.num_extra_outputs


@pytest.mark.parametrize("joint", JOINTS)
def test_a_hybrid_student_that_was_trained_alone_is_saved_and_shared_like_any(hybrid_config, tmp_path, joint):
    cfg = student_config(hybrid_config("tandem", JOINTS[joint]))
    lone = stock_class(cfg)(cfg)
    loaded = open_model(save_model(lone, tmp_path / "lone_student.nemo"))
    assert equal_states(loaded.state_dict(), lone.state_dict())
    shared = stock_of(loaded)
    assert type(shared) is EncDecHybridRNNTCTCBPEModel and type(shared.joint).__module__.startswith("nemo.")
    assert equal_states(shared.ctc_decoder.state_dict(), lone.ctc_decoder.state_dict())


def test_a_decoding_of_the_head_that_cannot_be_built_is_named_before_training(make_hybrid):
    model = make_hybrid("shared_kd")
    try_networks(model)
    model.cfg.student.aux_ctc.decoding = {
        "strategy": "beam",
        "beam": {"beam_size": 2},
    }  # two keys fewer than NeMo reads
    try_networks(model)
    assert model.student_model().cfg.aux_ctc.decoding.beam.beam_size == 2
    model.cfg.student.aux_ctc.decoding.strategy = "greedily"
    with pytest.raises(ValueError, match="model.student.aux_ctc.decoding fails in use: .*greedily"):
        try_networks(model)
