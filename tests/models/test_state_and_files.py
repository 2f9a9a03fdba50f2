"""State-dict keys, `.nemo` files of the pair, and the stock models that leave it."""

import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from nemo.collections.asr.modules import RNNTJoint
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

import nemo_codert
from nemo_codert.models import EncDecCoDERTBPEModel, teacher_config
from nemo_codert.modules.encoder_logits import joint_logits
from nemo_codert.modules.transducer import Transducer
from tests.conftest import ADDITIVE, STOCK, STRATEGIES
from tests.models.training_runs import equal_states, train

JOINTS = {"additive": ADDITIVE, "stock": STOCK}
SHARED = [name for name, codert in STRATEGIES.items() if codert["share_decoder"]]


@pytest.fixture
def no_failed_restore():
    """A failed restore leaves NeMo believing that one is under way."""
    yield
    AppState().is_model_being_restored = False


def save_and_restore(model, folder: Path, restore_class: type = EncDecCoDERTBPEModel):
    model.save_to(str(folder / "pair.nemo"))
    return restore_class.restore_from(str(folder / "pair.nemo"), map_location="cpu")


@pytest.mark.parametrize("strategy, joint", zip(STRATEGIES, ("additive", "stock", "additive") * 2, strict=True))
def test_a_pair_is_restored_as_it_was_saved_under_names_that_other_files_rely_on(
    shared_pair, tmp_path, strategy, joint
):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint])
    keys, shared = model.state_dict().keys(), strategy in SHARED
    assert {"encoder.pre_encode.out.weight", "joint.enc.weight", "student_encoder.pre_encode.out.weight"} <= keys
    assert {"decoder.prediction.embed.weight", "joint.pred.weight", "student_joint.enc.weight"} <= keys
    for prefix in ("student_decoder.", "student_joint.pred."):
        assert any(key.startswith(prefix) for key in keys) is not shared
    restored = save_and_restore(model, tmp_path)
    assert type(restored) is EncDecCoDERTBPEModel
    assert equal_states(model.state_dict(), restored.state_dict())
    assert restored.cfg.nemo_codert_version == nemo_codert.__version__
    assert restored.cfg.codert == model.cfg.codert and restored.cfg.student == model.cfg.student
    assert restored.cfg.target == "nemo_codert.models.EncDecCoDERTBPEModel"
    assert (restored.student_decoder is restored.decoder) is shared
    assert (restored.student_joint.pred is restored.joint.pred) is shared
    assert {n for n, p in restored.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_what_is_said_of_a_new_pair_is_not_said_of_a_restored_one(make_model, tmp_path, caplog):
    doubt = "compares encoder logits of two decoders of their own"
    model = make_model(codert={"share_decoder": False, "distillation": {"encoder": {"weight": 0.1}}})
    assert caplog.text.count(doubt) == 1
    save_and_restore(model, tmp_path)
    assert caplog.text.count(doubt) == 1


def test_nemos_classes_too_restore_a_pair_as_a_pair(shared_pair, tmp_path):
    for restore_class in (ASRModel, EncDecRNNTBPEModel):
        assert type(save_and_restore(shared_pair(), tmp_path, restore_class)) is EncDecCoDERTBPEModel


def test_a_restored_pair_trains_on_as_the_live_one(shared_pair, batch, tmp_path):
    model = shared_pair(strategy="shared_kd")
    train(model, [batch])
    restored = save_and_restore(model, tmp_path)
    assert train(model, [batch] * 2) == train(restored, [batch] * 2)
    assert restored.student_joint.pred is restored.joint.pred


def test_sharing_survives_a_move_to_another_dtype(make_model):
    model = make_model(strategy="shared_kd").double()
    assert model.student_joint.pred.weight is model.joint.pred.weight
    assert model.student_decoder is model.decoder
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_an_unshared_checkpoint_does_not_load_into_a_shared_config(shared_pair, tmp_path, no_failed_restore):
    unshared, shared = shared_pair(strategy="tandem_kd"), shared_pair(strategy="shared_kd")
    with pytest.raises(RuntimeError, match="Unexpected key.*student_decoder"):
        shared.load_state_dict(unshared.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*student_decoder"):
        unshared.load_state_dict(shared.state_dict())
    unshared.save_to(str(tmp_path / "pair.nemo"))
    OmegaConf.save(shared.cfg, tmp_path / "shared.yaml")
    with pytest.raises(RuntimeError, match="student_decoder"):
        EncDecCoDERTBPEModel.restore_from(
            str(tmp_path / "pair.nemo"), override_config_path=str(tmp_path / "shared.yaml"), map_location="cpu"
        )


@pytest.mark.parametrize(
    "strategy, joint, forms, restored",
    [
        ("tandem_kd", "additive", ["exact", "narrow"], False),
        ("shared_kd", "additive", ["exact", "compact"], False),
        ("shared_kd", "additive", ["narrow"], True),
        ("tandem_kd", "stock", ["auto"], False),
        ("shared_kd", "stock", ["auto"], False),
        ("shared_kd", "stock", ["auto"], True),
    ],
)
@torch.no_grad()
def test_the_stock_models_of_a_pair_compute_what_its_branches_do(
    shared_pair, batch, tmp_path, strategy, joint, forms, restored
):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint]).eval()
    if restored:
        model = save_and_restore(model, tmp_path).eval()
    for form in forms:
        for branch, stock in (
            (model.student_transducer, model.student_model(form)),
            (model.teacher_transducer, model.teacher_model(form)),
        ):
            # compact: float32 sums of D_enc + D_pred = 44 terms of size 1 in another order; narrow: of size up to 5.
            assert_same_logits(model, branch, stock, batch, atol={"compact": 2e-6, "narrow": 4e-6}.get(form, 0.0))


def assert_same_logits(pair, branch: Transducer, stock: EncDecRNNTBPEModel, batch, atol: float) -> None:
    signal, signal_len, transcript, transcript_len = batch
    assert type(stock) is EncDecRNNTBPEModel and type(stock.joint) is RNNTJoint
    assert not stock.training and "codert" not in stock.cfg
    encoded, encoded_len = stock(input_signal=signal, input_signal_length=signal_len)
    features, features_len = pair.extract_features(signal, signal_len)
    ours, ours_len = branch.encoder(audio_signal=features, length=features_len)
    assert torch.equal(encoded, ours) and torch.equal(encoded_len, ours_len)
    decoded, _, _ = stock.decoder(targets=transcript, target_length=transcript_len)
    expected, _, _ = branch.decoder(targets=transcript, target_length=transcript_len)
    logits, expected = joint_logits(stock.joint, encoded, decoded), joint_logits(branch.joint, ours, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=atol)


DECODINGS = ("greedy_batch", "greedy", "beam", "malsd_batch")


@pytest.mark.parametrize(
    "joint, form, strategies",
    [
        ("additive", "auto", ("greedy_batch", "malsd_batch")),
        ("additive", "narrow", DECODINGS),
        ("stock", "auto", DECODINGS),
    ],
)
@torch.no_grad()
def test_every_decoding_gives_the_same_transcripts_in_the_pair_and_in_its_stock_models(
    make_model, batch, joint, form, strategies
):
    model = make_model(joint=JOINTS[joint]).eval()
    for part in (model.joint, model.student_joint):  # untrained nets babble: a higher blank keeps the texts short
        (part.enc if joint == "additive" else part.joint_net[-1]).bias[-1] += 0.3
    features, features_len = model.extract_features(batch[0][:2, :6400], torch.tensor([6400, 4800]))  # beams are slow
    texts, stocks = {}, ()
    for strategy in strategies:
        settings = {"strategy": strategy, "greedy": {"max_symbols": 5}, "beam": {"beam_size": 2, "max_symbols": 5}}
        model.change_decoding_strategy(OmegaConf.create(settings), verbose=False)
        if strategy in (strategies[0], strategies[-1]):  # they leave with the pair's present decoding
            stocks = model.student_model(form), model.teacher_model(form)
        else:  # and take another as the pair does
            for stock in stocks:
                stock.change_decoding_strategy(OmegaConf.create(settings), verbose=False)
        branches = (model.student_transducer, model.student_decoding), (model.teacher_transducer, model.decoding)
        for (branch, decoding), stock in zip(branches, stocks, strict=True):
            encoded, encoded_len = branch.encoder(audio_signal=features, length=features_len)
            ours = decoding.rnnt_decoder_predictions_tensor(encoded, encoded_len, return_hypotheses=False)
            theirs = stock.decoding.rnnt_decoder_predictions_tensor(encoded, encoded_len, return_hypotheses=False)
            assert [hypothesis.text for hypothesis in ours] == [hypothesis.text for hypothesis in theirs]
            assert stock.cfg.decoding.strategy == strategy
            texts[strategy, stock.cfg.encoder.n_layers] = [hypothesis.text for hypothesis in ours]
    assert all(any(found) for found in texts.values())


def values_of(node: object, path: tuple = ()) -> list[tuple[tuple, object]]:
    """Every leaf of a YAML document with the keys that lead to it."""
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in values_of(value, (*path, key))]
    if isinstance(node, list):
        return [leaf for value in node for leaf in values_of(value, path)]
    return [(path, node)]


def test_a_students_file_names_neither_teacher_nor_training_machine(make_model, manifest, tmp_path):
    dev = tmp_path / "dev.json"  # NeMo names validation sets by their file and refuses `manifest`
    dev.write_text(manifest.read_text())
    data = {"manifest_filepath": str(dev), "sample_rate": 16000, "batch_size": 2, "shuffle": False}
    model = make_model(train_ds=data, validation_ds=data)
    for name, pair in (("built", model), ("restored", save_and_restore(model, tmp_path))):
        pair.student_model().save_to(str(tmp_path / f"{name}.nemo"))
        assert_names_nothing(tmp_path / f"{name}.nemo", str(tmp_path), str(manifest.parent))


def assert_names_nothing(student: Path, *paths: str) -> None:
    """Of the teacher, the pair and those paths of the machine."""
    unpacked = student.with_suffix("")
    with tarfile.open(student) as archive:
        archive.extractall(unpacked, filter="data")
    files = {path.name for path in unpacked.iterdir()}
    assert {"model_config.yaml", "model_weights.ckpt"} <= files and len(files) == 5  # and three tokenizer files
    text = (unpacked / "model_config.yaml").read_text()
    for forbidden in ("codert:", "student:", "teacher", "AdditiveRNNTJoint", *paths):
        assert forbidden not in text
    config = yaml.safe_load(text)
    assert {"train_ds", "test_ds", "codert", "student"}.isdisjoint(config)
    leaves = [(path, value) for path, value in values_of(config) if path[-1] not in ("labels", "vocabulary")]
    assert not [path for path, value in leaves if isinstance(value, str) and value.startswith("/")]
    weights = torch.load(unpacked / "model_weights.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in weights} == {"preprocessor", "encoder", "decoder", "joint"}
    assert weights["encoder.pre_encode.out.weight"].shape[0] == 16


def test_a_students_file_restores_and_transcribes_as_the_student(shared_pair, manifest, tmp_path):
    model = shared_pair()
    files = [str(manifest.parent / f"{i}.wav") for i in range(2)]
    model.student_model().save_to(str(tmp_path / "student.nemo"))
    restored = ASRModel.restore_from(str(tmp_path / "student.nemo"), map_location="cpu")
    assert type(restored) is EncDecRNNTBPEModel
    texts = [h.text for h in restored.transcribe(files, batch_size=2, verbose=False)]
    assert texts == [h.text for h in model.transcribe(files, batch_size=2, verbose=False)]


def test_a_stock_file_stays_stock_when_our_class_restores_it(make_config, tmp_path):
    EncDecRNNTBPEModel(teacher_config(make_config(joint=STOCK))).save_to(str(tmp_path / "stock.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "stock.nemo"), map_location="cpu")
    assert type(restored) is EncDecRNNTBPEModel and type(restored.joint) is RNNTJoint


def snapshot(model) -> dict:
    """All of a pair that inference must leave as it was."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
        # NeMo's Conformers of one process share one activation object, without state and of no mode of its own.
        "modes": [(n, module.training) for n, module in model.named_modules() if not n.endswith("activation")],
        "switches": [
            (joint.log_softmax, joint._rnnt_export, decoder._rnnt_export)
            for joint, decoder in ((model.joint, model.decoder), (model.student_joint, model.student_decoder))
        ],
        "config": OmegaConf.to_container(model.cfg),
    }


def assert_unchanged(model, before: dict) -> None:
    after = snapshot(model)
    assert equal_states(before.pop("weights"), after.pop("weights"))
    for part in before:
        assert before[part] == after[part], part


@pytest.mark.parametrize("strategy, training", [("static", True), ("shared_kd", False)])
def test_a_pair_is_the_same_after_it_transcribed_and_was_exported(
    shared_pair, batch, manifest, tmp_path, strategy, training
):
    model = shared_pair(strategy=strategy).train(training)
    before = snapshot(model)
    model.transcribe([str(manifest.parent / "0.wav")], verbose=False)
    model.export(str(tmp_path / "student.onnx"), verbose=False)
    assert_unchanged(model, before)
    assert list(tmp_path.glob("*student.onnx"))
    assert torch.isfinite(model.training_step(batch, 0)["loss"])


def test_taking_the_stock_models_draws_no_random_numbers(shared_pair):
    model = shared_pair()
    state, before = torch.random.get_rng_state(), snapshot(model)
    model.student_model()
    model.teacher_model()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_unchanged(model, before)


def test_a_stock_model_holds_copies(shared_pair):
    model = shared_pair()
    student = model.student_model()
    before = student.state_dict()["encoder.pre_encode.out.weight"].clone()
    with torch.no_grad():
        model.student_encoder.pre_encode.out.weight.add_(1.0)
    assert torch.equal(student.state_dict()["encoder.pre_encode.out.weight"], before)
