"""Teachers that are hybrid RNN-T/CTC or TDT models: loaded whole, frozen, distilled by what they say themselves."""

from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from omegaconf import OmegaConf

from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.models import EncDecCoDERTBPEModel, student_config
from tests.conftest import ADDITIVE, SENTENCES, STOCK, conformer
from tests.models.teacher_files import KINDS, pair_config, save_teacher
from tests.models.training_runs import branch_losses, equal_states, train

OTHERS = ["hybrid", "tdt", "hybrid_tdt"]
# Kind of teacher, and where its encoder logits come from.
SOURCES = [("rnnt", "joint"), *((kind, "joint") for kind in OTHERS), ("hybrid", "ctc"), ("hybrid_tdt", "ctc")]
PARTS = ("preprocessor.", "encoder.", "decoder.", "joint.")


@pytest.fixture(scope="module")
def make_pair(make_config, saved_teacher, tmp_path_factory):
    """Factory of a pair and the original model that its teacher was loaded from, whose file is gone by then."""

    def make(kind: str, logits: str = "joint", strategy: str = "static", **settings):
        path, original = saved_teacher(tmp_path_factory.mktemp("teacher"), kind, **settings)
        cfg = pair_config(make_config, kind, path, {"teacher_logits": logits}, strategy=strategy, **settings)
        torch.manual_seed(0)
        model = EncDecCoDERTBPEModel(cfg)
        Path(path).unlink()
        return model, original

    return make


@pytest.fixture(scope="module")
def loaded_pair(make_pair):
    """`make_pair(kind, logits)`, once for each: for tests that leave the pair as it is."""
    kept = {}

    def get(kind: str, logits: str = "joint"):
        if (kind, logits) not in kept:
            kept[kind, logits] = make_pair(kind, logits)
        return kept[kind, logits]

    return get


def teacher_state(model) -> dict[str, torch.Tensor]:
    names = (*PARTS, "ctc_decoder.") if hasattr(model, "ctc_decoder") else PARTS
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith(names)}


def logits_by_hand(original, logits: str, features) -> torch.Tensor:
    """Encoder logits [B, T, V+1] as the original model's own modules make them."""
    encoded, _ = original.encoder(audio_signal=features[0], length=features[1])
    if logits == "ctc":
        return original.ctc_decoder(encoder_output=encoded)
    hidden = torch.relu(original.joint.enc(encoded.transpose(1, 2)))
    return original.joint.joint_net[-1](hidden)[..., : len(original.joint.vocabulary) + 1]


@pytest.mark.parametrize("kind, logits", SOURCES)
def test_a_teacher_is_loaded_whole_and_distilled_by_what_the_original_says(loaded_pair, batch, kind, logits):
    model, original = loaded_pair(kind, logits)
    expected = {n: v for n, v in original.state_dict().items() if logits == "ctc" or not n.startswith("ctc_decoder.")}
    assert equal_states(teacher_state(model), expected)
    assert model.loaded["teacher"]["tensors"] == len([name for name in expected if not name.startswith("preproc")])
    model.train()
    features = model.extract_features(*batch[:2])
    with torch.no_grad():
        teacher = logits_by_hand(original, logits, features).log_softmax(-1)
        encoded = model.student_transducer.run(*features)
        student = model.student_joint.enc(encoded.encoded.transpose(1, 2))
        student = model.student_joint.joint_net[-1](torch.relu(student)).log_softmax(-1)
        lengths = encoded.encoded_len
        valid = torch.arange(teacher.shape[1]) < lengths[:, None]
        by_hand = ((teacher.exp() * (teacher - student)).sum(-1) * valid).sum() / len(lengths)
    loss = branch_losses(model, batch)["train_distillation_loss"]
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=0)  # float32 sums of 100 frames of 33 classes


@pytest.mark.parametrize(
    "kind, logits, strategy", [("tdt", "joint", "static_shared"), ("hybrid_tdt", "ctc", "static")]
)
def test_nothing_of_a_frozen_teacher_moves_and_the_student_learns(make_pair, batch, manifest, kind, logits, strategy):
    norm = {**conformer(layers=2, channels=24), "conv_norm_type": "batch_norm", "dropout": 0.1}
    model, original = make_pair(kind, logits, strategy, teacher=norm)
    student = {name: value.clone() for name, value in model.student_joint.state_dict().items()}
    before = teacher_state(model)
    model.transcribe([str(manifest.parent / "0.wav")], verbose=False)
    model.unfreeze()
    losses = train(model, [batch] * 3)
    assert losses[-1] < losses[0]
    assert equal_states(teacher_state(model), before)
    for network in model.teacher_transducer.networks():
        assert not network.training
        assert all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(torch.equal(value, student[name]) for name, value in model.student_joint.state_dict().items())


# A head that is in the teacher's file and not taken from it is left out as in (hybrid, joint).
@pytest.mark.parametrize("kind, logits", [source for source in SOURCES if source != ("hybrid_tdt", "joint")])
def test_a_pair_restores_and_its_branches_leave_as_stock_models(loaded_pair, batch, manifest, tmp_path, kind, logits):
    model, original = loaded_pair(kind, logits)
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(restored.state_dict(), model.state_dict())
    restored.on_fit_start()
    pairs = (model.eval(), restored.eval())
    assert len({float(branch_losses(pair, batch)["train_distillation_loss"].detach()) for pair in pairs}) == 1

    audio = [str(manifest.parent / f"{i}.wav") for i in range(4)]
    teacher = restored.teacher_model()
    assert type(teacher) is EncDecRNNTBPEModel
    texts, expected = ([said.text for said in m.transcribe(audio, verbose=False)] for m in (teacher, original))
    assert texts == expected and any(texts)

    restored.student_model().save_to(str(tmp_path / "student.nemo"))
    config = ASRModel.restore_from(str(tmp_path / "student.nemo"), return_config=True)
    assert "aux_ctc" not in config and not config.joint.get("num_extra_outputs")
    assert not config.decoding.get("durations") and config.loss.get("loss_name", "default") == "default"
    student = ASRModel.restore_from(str(tmp_path / "student.nemo"), map_location="cpu")
    assert type(student) is EncDecRNNTBPEModel and student.joint.num_classes_with_blank == 33
    assert len(student.transcribe(audio, verbose=False)) == 4


def test_the_teachers_words_are_those_of_its_own_decoding(make_pair, batch):
    model, original = make_pair("tdt")
    assert model.decoding.durations == [0, 1, 2] and not model.student_decoding.durations
    features = model.extract_features(*batch[:2])
    frames = original.encoder(audio_signal=features[0], length=features[1])
    said = [
        [h.text for h in decoding.rnnt_decoder_predictions_tensor(*frames)]
        for decoding in (model.decoding, original.decoding)
    ]
    assert said[0] == said[1] and any(said[0])
    model.change_decoding_strategy(OmegaConf.merge(model.cfg.decoding, {"strategy": "malsd_batch"}))
    assert model.decoding.durations == [0, 1, 2] and not model.student_decoding.durations


def test_a_lone_student_takes_over_nothing_of_a_hybrid_tdt_yaml(make_config):
    cfg = OmegaConf.merge(make_config(joint=STOCK), KINDS["hybrid_tdt"])
    lone = student_config(cfg)
    assert "aux_ctc" not in lone and "num_extra_outputs" not in lone.joint and "durations" not in lone.decoding
    assert "tdt_durations" not in lone.model_defaults and lone.loss.keys() == {"warprnnt_numba_kwargs"}
    assert EncDecRNNTBPEModel(lone).joint.num_classes_with_blank == 33


def test_a_hybrid_starts_a_teacher_that_then_moves(make_config, saved_teacher, tmp_path, batch):
    path, original = saved_teacher(tmp_path, "hybrid")
    model = EncDecCoDERTBPEModel(pair_config(make_config, "hybrid", path, strategy="shared_kd"))
    start = teacher_state(model)
    assert all(torch.equal(start[name], original.state_dict()[name]) for name in start)
    train(model, [batch])
    assert not torch.equal(model.joint.enc.weight, original.joint.enc.weight)


def test_a_pairs_file_gives_a_tdt_teacher_or_a_plain_student(loaded_pair, make_config, tmp_path):
    model, original = loaded_pair("hybrid_tdt", "ctc")
    path = str(tmp_path / "pair.nemo")
    model.save_to(path)
    cfg = pair_config(make_config, "hybrid_tdt", path, {"teacher_logits": "ctc"})
    cfg.student.init_from = path
    again = EncDecCoDERTBPEModel(cfg)
    assert equal_states(again.state_dict(), model.state_dict())


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(cfg) -> str:
    with pytest.raises(ValueError) as caught:
        EncDecCoDERTBPEModel(cfg)
    return str(caught.value)


def test_another_tokenizer_or_front_end_is_refused(make_config, tmp_path):
    kind = "hybrid_tdt"
    folder = train_tokenizer([text[::-1] for text in SENTENCES], tmp_path / "reversed", vocab_size=32)
    path, _ = save_teacher(
        make_config, tmp_path, kind, tokenizer={"dir": str(folder)}, preprocessor={"window_size": 0.02}
    )
    message = refused(pair_config(make_config, kind, path))
    assert "the checkpoint's has 32, first difference at id" in message
    assert "model.preprocessor.window_size is 0.025, the checkpoint has 0.02" in message


def test_a_tdt_model_for_a_yaml_of_a_standard_rnnt_is_refused_and_the_other_way_round(
    make_config, saved_teacher, tmp_path
):
    paths = {kind: saved_teacher(tmp_path, kind)[0] for kind in ("rnnt", "tdt")}
    message = refused(pair_config(make_config, "rnnt", paths["tdt"]))
    assert "model.joint.num_extra_outputs is 0, the checkpoint has 3" in message
    assert "model.decoding.durations is [], the checkpoint has [0, 1, 2]" in message
    message = refused(pair_config(make_config, "tdt", paths["rnnt"]))
    assert "model.joint.num_extra_outputs is 3, the checkpoint has 0" in message


def test_other_durations_are_refused(make_config, saved_teacher, tmp_path):
    path, _ = saved_teacher(tmp_path, "tdt")
    cfg = pair_config(make_config, "tdt", path)
    cfg.decoding.durations = cfg.loss.tdt_kwargs.durations = [0, 2, 1]
    assert "model.decoding.durations is [0, 2, 1], the checkpoint has [0, 1, 2]" in refused(cfg)


def test_a_checkpoint_without_a_ctc_head_is_refused_where_its_logits_are_wanted(make_config, saved_teacher, tmp_path):
    path, _ = saved_teacher(tmp_path, "rnnt")
    message = refused(pair_config(make_config, "hybrid", path, {"teacher_logits": "ctc"}))
    assert "rnnt.nemo' has no CTC head, but model.codert.teacher_logits is ctc: wanted a hybrid" in message


def test_a_student_cannot_start_from_a_hybrid_or_a_tdt_model(make_config, saved_teacher, tmp_path):
    path, _ = saved_teacher(tmp_path, "hybrid_tdt")
    cfg = make_config(joint=STOCK)
    cfg.student.init_from = path
    message = refused(cfg)
    assert "is a TDT model, a hybrid RNN-T/CTC model, wanted a standard RNN-T (EncDecRNNTBPEModel) with a" in message


def test_a_hybrid_is_compared_with_an_additive_yaml_like_any_other(make_config, saved_teacher, tmp_path):
    path, _ = saved_teacher(tmp_path, "hybrid")
    message = refused(pair_config(make_config, "hybrid", path, joint=ADDITIVE))
    assert f"model.joint._target_ is '{ADDITIVE}', the checkpoint has '{STOCK}'" in message
