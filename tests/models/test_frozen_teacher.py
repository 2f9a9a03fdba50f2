"""Teachers from checkpoints: frozen ones that never move, warm starts, and sources that are refused before a step."""

import shutil
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config
from nemo_codert.models.teacher_weights import KINDS, refuse_other_models
from nemo_codert.modules.transducer import Batch
from tests.conftest import ADDITIVE, SENTENCES, STOCK, conformer
from tests.models.training_runs import equal_states, train

JOINTS = {"additive": ADDITIVE, "stock": STOCK}
FROZEN = ("static", "static_shared")
BATCH_NORM = {**conformer(layers=2, channels=24), "conv_norm_type": "batch_norm", "dropout": 0.1, "dropout_att": 0.1}


@pytest.fixture(autouse=True)
def no_restore_under_way():
    """A failed restore must not leave NeMo believing that one is under way: later models would get no data."""
    yield
    assert AppState().is_model_being_restored is False


@pytest.fixture(scope="module")
def saved(make_config, tmp_path_factory):
    """Stock files that were saved, by branch and settings, with the weights in them: each is made once."""
    kept = {}

    def save(config_of, seed: int, **settings) -> tuple[Path, dict[str, torch.Tensor]]:
        key = repr((config_of.__name__, seed, sorted(settings.items())))
        if key not in kept:
            torch.manual_seed(seed)
            model = EncDecRNNTBPEModel(config_of(make_config(**settings)))
            path = tmp_path_factory.mktemp("saved") / "model.nemo"
            model.save_to(str(path))
            kept[key] = path, model.state_dict()
        return kept[key]

    return save


@pytest.fixture
def teacher_file(saved, tmp_path):
    """Factory of stock `.nemo` files: returns the path and the weights of a teacher that was trained alone."""

    def make(name: str = "teacher.nemo", seed: int = 7, **settings):
        path, weights = saved(teacher_config, seed, **settings)
        return str(shutil.copy(path, tmp_path / name)), weights

    return make


def teacher_state(model: EncDecCoDERTBPEModel) -> dict[str, torch.Tensor]:
    """The teacher's weights and buffers under stock names."""
    names = ("preprocessor.", "encoder.", "decoder.", "joint.")
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith(names)}


def test_a_frozen_teacher_without_weights_can_be_built_but_not_fitted(make_model):
    model = make_model(strategy="static")
    with pytest.raises(ValueError, match="teacher is frozen but model.codert.teacher_checkpoint is null.*Give the"):
        model.on_fit_start()


@pytest.mark.parametrize("strategy, joint", [("static", "additive"), ("static_shared", "stock")])
def test_a_teacher_is_loaded_whole_from_a_stock_file(make_model, teacher_file, strategy, joint):
    path, weights = teacher_file(joint=JOINTS[joint])
    model = make_model(strategy=strategy, joint=JOINTS[joint], codert={"teacher_checkpoint": path})
    assert equal_states(teacher_state(model), weights)
    networks = {name: value for name, value in weights.items() if not name.startswith("preprocessor.")}
    assert model.loaded == {
        "teacher": {
            "source": path,
            "tensors": len(networks),
            "parameters": sum(value.numel() for value in networks.values()),
            "keys": sorted(networks),
        }
    }
    model.on_fit_start()
    assert AppState().is_model_being_restored is False


@pytest.mark.parametrize("strategy", FROZEN)
def test_a_frozen_teacher_never_moves(make_model, teacher_file, batch, manifest, strategy):
    path, weights = teacher_file(joint=STOCK, teacher=BATCH_NORM)
    model = make_model(strategy=strategy, joint=STOCK, teacher=BATCH_NORM, codert={"teacher_checkpoint": path})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(3):
        model.train()
        if step == 1:
            model.transcribe([str(manifest.parent / "0.wav")], verbose=False)
            model.unfreeze()
        optimizer.zero_grad()
        model.training_step(batch, 0)["loss"].backward()
        model.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
        for network in (model.encoder, model.decoder, model.joint):
            assert not any(module.training for module in network.modules() if list(module.buffers()))
            assert not any(module.training for module in network.modules() if isinstance(module, torch.nn.Dropout))
            assert all(parameter.grad is None for parameter in network.parameters() if not parameter.requires_grad)
            assert not any(parameter.requires_grad for parameter in network.parameters())
            assert not any(parameter in optimizer.state for parameter in network.parameters())
    assert any(name.endswith("running_mean") for name in weights)
    assert equal_states(teacher_state(model), weights)


def test_a_frozen_teachers_frames_do_not_depend_on_the_mode_of_the_pair(make_model, teacher_file, batch):
    path, _ = teacher_file(teacher=BATCH_NORM)
    model = make_model(strategy="static", teacher=BATCH_NORM, codert={"teacher_checkpoint": path})
    features = model.extract_features(*batch[:2])
    outputs = [model.train(mode).teacher.output(*features, Batch.of(batch), None) for mode in (True, False)]
    frames = [output.encoded for output in outputs]
    assert torch.equal(*frames) and not frames[0].requires_grad


def test_a_frozen_teacher_that_was_restored_with_the_pair_can_be_fitted(make_model, teacher_file, tmp_path):
    path, weights = teacher_file()
    model = make_model(strategy="static", codert={"teacher_checkpoint": path})
    model.save_to(str(tmp_path / "pair.nemo"))
    (tmp_path / "teacher.nemo").unlink()  # the pair's own file holds the teacher
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert equal_states(teacher_state(restored), weights)
    restored.on_fit_start()
    assert not any(p.requires_grad for p in restored.encoder.parameters())


def test_a_frozen_teacher_whose_weights_were_loaded_by_hand_can_be_fitted(make_model):
    trained, model = make_model(strategy="tandem_kd"), make_model(strategy="static")
    with pytest.raises(ValueError, match="teacher_checkpoint is null"):
        model.on_fit_start()
    model.load_state_dict(trained.state_dict())
    model.on_fit_start()
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_a_co_trained_teacher_starts_from_its_checkpoint_and_moves(make_model, teacher_file, batch):
    path, weights = teacher_file()
    model = make_model(strategy="shared_kd", codert={"teacher_checkpoint": path})
    assert equal_states(teacher_state(model), weights)
    train(model, [batch])
    moved = teacher_state(model)
    assert not torch.equal(moved["encoder.pre_encode.out.weight"], weights["encoder.pre_encode.out.weight"])


@pytest.mark.parametrize("share_decoder", [True, False])
def test_a_student_starts_from_its_checkpoint(shared_pair, make_config, saved, share_decoder):
    codert = {"share_decoder": share_decoder}
    path, lone = saved(student_config, 9, strategy="tandem_kd")
    path = str(path)
    teacher = teacher_state(shared_pair(codert=codert))
    cfg = make_config(codert=codert)
    cfg.student.init_from = path
    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(cfg)
    assert model.loaded["student"]["source"] == path
    encoder = {name.removeprefix("encoder."): v for name, v in lone.items() if name.startswith("encoder.")}
    assert equal_states(model.student_encoder.state_dict(), encoder)
    assert torch.equal(model.student_joint.enc.weight, lone["joint.enc.weight"])
    assert torch.equal(model.student_joint.pred.weight, lone["joint.pred.weight"]) is not share_decoder
    assert equal_states(teacher_state(model), teacher)  # the teacher's prediction network among it


def test_a_pairs_file_gives_its_teacher_or_its_student(make_model, make_config, tmp_path):
    torch.manual_seed(9)
    source = EncDecCoDERTBPEModel(make_config(strategy="shared_kd"))
    source.save_to(str(tmp_path / "pair.nemo"))
    cfg = make_config(strategy="tandem_kd", codert={"teacher_checkpoint": str(tmp_path / "pair.nemo")})
    cfg.student.init_from = str(tmp_path / "pair.nemo")
    model = EncDecCoDERTBPEModel(cfg)
    assert equal_states(teacher_state(model), teacher_state(source))
    assert equal_states(model.student_encoder.state_dict(), source.student_encoder.state_dict())
    assert torch.equal(model.student_joint.pred.weight, source.joint.pred.weight)  # shared there, its own here
    assert equal_states(model.student_decoder.state_dict(), source.decoder.state_dict())


def refused(make_config, path: str, **settings) -> str:
    """The message a pair is refused with whose teacher is to come from `path`."""
    with pytest.raises(ValueError) as error:
        EncDecCoDERTBPEModel(make_config(strategy="static", codert={"teacher_checkpoint": path}, **settings))
    assert AppState().is_model_being_restored is False
    return str(error.value)


def test_another_tokenizer_is_refused(make_config, teacher_file, tmp_path):
    folder = train_tokenizer([text[::-1] for text in SENTENCES], tmp_path / "reversed", vocab_size=32)
    path, _ = teacher_file(tokenizer={"dir": str(folder)})
    message = refused(make_config, path)
    assert "model.tokenizer has 32 word pieces, the checkpoint's has 32, first difference at id" in message
    assert "Set these keys to the checkpoint's values" in message


def test_a_tokenizer_of_another_size_is_refused(make_config, teacher_file, tmp_path):
    folder = train_tokenizer(SENTENCES, tmp_path / "larger", vocab_size=40)
    path, _ = teacher_file(tokenizer={"dir": str(folder)})
    assert "model.tokenizer has 32 word pieces, the checkpoint's has 40" in refused(make_config, path)


def test_every_difference_of_the_settings_is_listed_at_once(make_config, teacher_file):
    path, _ = teacher_file(teacher={**conformer(layers=3, channels=24), "conv_kernel_size": 7})
    message = refused(make_config, path)
    assert "model.encoder.n_layers is 2, the checkpoint has 3" in message
    assert "model.encoder.conv_kernel_size is 5, the checkpoint has 7" in message


def test_another_feature_front_end_is_refused(make_config, teacher_file):
    others = {"window": "hamming", "highfreq": 4000, "window_size": 0.02, "normalize": "all_features"}
    path, _ = teacher_file(preprocessor=others)
    message = refused(make_config, path)
    for key, value in others.items():
        assert f"model.preprocessor.{key} is " in message and f"the checkpoint has {value!r}" in message
    assert "model.preprocessor: window or mel filters differ" in message and "Set these keys" in message


def test_a_key_that_one_config_leaves_out_counts_as_its_default(make_config, teacher_file):
    """`conv_context_size: causal` changes every frame and no shape."""
    defaults, others = (
        {"conv_context_size": None, "xscaling": True},
        {"conv_context_size": "causal", "xscaling": False},
    )
    without = conformer(layers=2, channels=24)
    for key in defaults:
        without.pop(key, None)
    path, weights = teacher_file("without.nemo", teacher=without)
    loaded = make_config(strategy="static", teacher={**without, **defaults}, codert={"teacher_checkpoint": path})
    assert equal_states(teacher_state(EncDecCoDERTBPEModel(loaded)), weights)
    message = refused(make_config, path, teacher={**without, **others})
    for key, value in others.items():
        assert f"model.encoder.{key} is {value!r}, the checkpoint has {defaults[key]!r}" in message

    path, _ = teacher_file("with.nemo", teacher={**without, **others})
    message = refused(make_config, path, teacher=without)
    for key, value in others.items():
        assert f"model.encoder.{key} is {defaults[key]!r}, the checkpoint has {value!r}" in message


def test_another_attention_context_is_refused_whether_or_not_both_configs_name_it(make_config, teacher_file):
    limited = {**conformer(layers=2, channels=24), "att_context_style": "chunked_limited", "att_context_size": [4, 1]}
    path, _ = teacher_file(teacher=limited)
    message = refused(make_config, path)
    assert "model.encoder.att_context_style is 'regular', the checkpoint has 'chunked_limited'" in message
    assert "model.encoder.att_context_size is [-1, -1], the checkpoint has [4, 1]" in message


def test_a_joint_of_the_other_kind_is_refused(make_config, teacher_file):
    path, _ = teacher_file(joint=STOCK)
    message = refused(make_config, path, joint=ADDITIVE)
    assert f"model.joint._target_ is '{ADDITIVE}', the checkpoint has '{STOCK}'" in message


def test_settings_of_training_alone_may_differ(make_config, teacher_file):
    path, weights = teacher_file(teacher=BATCH_NORM)
    teacher = {**BATCH_NORM, "dropout": 0.3, "dropout_att": 0.0}
    model = EncDecCoDERTBPEModel(make_config(strategy="static", teacher=teacher, codert={"teacher_checkpoint": path}))
    assert equal_states(teacher_state(model), weights)


def test_a_missing_file_is_refused_by_name(make_config, tmp_path):
    message = refused(make_config, str(tmp_path / "nowhere.nemo"))
    assert "model.codert.teacher_checkpoint" in message and "nowhere.nemo" in message
    assert "is no file. Give the path of a .nemo file or a pretrained name" in message


def test_a_file_that_is_no_model_is_refused(make_config, tmp_path):
    (tmp_path / "broken.nemo").write_bytes(b"not an archive")
    assert "cannot be restored as a NeMo model" in refused(make_config, str(tmp_path / "broken.nemo"))


def test_a_student_that_does_not_fit_its_checkpoint_is_refused(make_config, teacher_file):
    path, _ = teacher_file()
    cfg = make_config()
    cfg.student.init_from = path
    with pytest.raises(ValueError, match="model.student.encoder.n_layers is 1, the checkpoint has 2"):
        EncDecCoDERTBPEModel(cfg)


def refused_student(make_config, path: str, decoder: dict | None = None) -> str:
    """The message a pair is refused with whose student, with a decoder of its own, is to start from `path`."""
    cfg = make_config(strategy="tandem_kd")
    cfg.student.init_from, cfg.student.decoder = path, decoder
    with pytest.raises(ValueError) as error:
        EncDecCoDERTBPEModel(cfg)
    return str(error.value)


def test_a_student_from_another_feature_front_end_is_refused(make_config, tmp_path):
    lone = student_config(make_config(preprocessor={"normalize": "all_features"}))
    EncDecRNNTBPEModel(lone).save_to(str(tmp_path / "lone.nemo"))
    message = refused_student(make_config, str(tmp_path / "lone.nemo"))
    assert "model.preprocessor.normalize is 'per_feature', the checkpoint has 'all_features'" in message


def test_a_students_own_prediction_network_is_compared(make_config, tmp_path):
    lone = student_config(make_config(decoder={"prednet": {"pred_rnn_layers": 2}}))
    EncDecRNNTBPEModel(lone).save_to(str(tmp_path / "lone.nemo"))
    path = str(tmp_path / "lone.nemo")
    expected = "model.student.decoder.prednet.pred_rnn_layers is 1, the checkpoint has 2"
    assert expected in refused_student(make_config, path)
    own = OmegaConf.to_container(make_config().decoder)
    assert expected in refused_student(make_config, path, own)


@pytest.mark.parametrize("target", ["nemo.collections.asr.models.EncDecCTCModelBPE", "somebody.elses.Model"])
def test_any_other_class_is_refused_by_its_name(target):
    with pytest.raises(ValueError, match=f"the file.* {target.rsplit('.', 1)[-1]}, wanted a standard RNN-T"):
        refuse_other_models(OmegaConf.create({"target": target}), "the file")


@pytest.mark.parametrize("change, kind", [
    ({"tokenizer": {"type": "agg"}}, "a tokenizer of type 'agg'"),
    ({"tokenizer": {"type": "wpe"}}, "a tokenizer of type 'wpe'"),
    ({"joint": {"masking_prob": 0.5}}, "a HAINAN model"),
    ({"joint": {"masking_prob": 0.5}, "decoding": {"durations": [0, 1]}}, "a HAINAN model"),
    ({"joint": {"num_extra_outputs": 2}, "decoding": {"big_blank_durations": [2, 4]}}, "a multi-blank model"),
    ({"adapters": {"one": {"enabled": True}}}, "an RNN-T with adapters"),
])  # fmt: skip
def test_an_rnnt_of_another_kind_is_refused_by_that_name_as_a_teacher_too(change, kind):
    config = OmegaConf.create({"target": "nemo.collections.asr.models.EncDecRNNTBPEModel", **change})
    for others in ((), KINDS):
        with pytest.raises(ValueError, match=f"the file is .*{kind}.*, wanted a standard RNN-T"):
            refuse_other_models(config, "the file", others)


@pytest.mark.parametrize("target", ["EncDecHybridRNNTCTCModel", "EncDecRNNTModel"])
def test_a_model_of_characters_is_no_teacher(target):
    with pytest.raises(ValueError, match=f"{target}, wanted a standard RNN-T .* or a hybrid RNN-T/CTC model or a TDT"):
        refuse_other_models(OmegaConf.create({"target": f"nemo.collections.asr.models.{target}"}), "the file", KINDS)
