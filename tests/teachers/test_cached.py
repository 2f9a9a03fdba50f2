"""A teacher of stored targets teaches as the frozen one whose targets they are, whatever the order of utterances."""

import copy
import json

import pytest
import torch
from omegaconf import OmegaConf, open_dict

from nemo_codert.data.target_cache import TargetCache
from nemo_codert.data.target_header import TargetFault
from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets
from nemo_codert.export.stock_file import save_model
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch
from tests.conftest import ADDITIVE, STOCK, conformer
from tests.models.teacher_files import CTC, save_teacher

LOADER = {"sample_rate": 16000, "batch_size": 3, "shuffle": True, "num_workers": 0, "pin_memory": False}
TERMS = {
    "encoder": {"at": "encoder", "weight": 0.3},
    "softer": {"at": "encoder", "weight": 0.3, "temperature": 2.0, "reduction": "per_frame", "frame_shift": 1},
    "primed": {"at": "encoder", "weight": 0.3, "prior": "mean_prediction"},
    "hidden": {"at": "hidden", "by": "cosine", "layers": {1: 2}, "weight": 0.3},
    "joint": {"at": "joint", "nodes": "best_path", "weight": 0.3},
    "sequence": {"at": "sequence", "by": "l2", "weight": 0.1},
}


@pytest.fixture(scope="module")
def teacher(make_config, tmp_path_factory) -> str:
    return save_teacher(make_config, tmp_path_factory.mktemp("teacher"), "hybrid", teacher=conformer(2, 24))[0]


@pytest.fixture(scope="module")
def targets(teacher, manifest, tmp_path_factory):
    """Factory of targets, each kind made once."""
    made = {}

    def make(**settings) -> str:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp("made") / "targets")
            given = {"dtype": "float32", "progress": False, **settings}
            cache_targets(CacheSettings((teacher,), manifest, made[key], **given))
        return made[key]

    return make


def pair(make_config, teacher, manifest, source, terms, folder=None, **changes):
    codert = {"teacher": source, "share_decoder": False, "teacher_checkpoint": teacher, "teacher_cache": folder}
    cfg = make_config("static", joint=STOCK, teacher=conformer(2, 24))
    with open_dict(cfg):
        cfg.codert = {**codert, "distillation": terms, **changes.pop("codert", {})}
        cfg.train_ds = {"manifest_filepath": str(manifest), **LOADER, **changes.pop("train_ds", {})}
        cfg = OmegaConf.merge(cfg, changes)
    torch.manual_seed(0)
    return EncDecCoDERTBPEModel(OmegaConf.create(OmegaConf.to_container(cfg))).train()


def losses_of(model, loaded) -> dict[str, torch.Tensor]:
    batch = Batch.of(loaded)
    features, heard = model.branch_features(batch, 0, 0)
    of_student, of_teacher = model.criteria.layers(0)
    student = model.student_transducer.run(*heard, batch.transcript, batch.transcript_len, layers=of_student)
    return model.codert_losses(student, model.teacher.output(*features, batch, student, of_teacher), batch, 0)


@pytest.mark.parametrize("use_lhotse", [False, True])
@pytest.mark.parametrize("kept", ["all_classes", "prior", "encoder"])
def test_stored_targets_give_the_frozen_teachers_losses_in_any_order(
    make_config, teacher, targets, manifest, kept, use_lhotse
):
    names = {"all_classes": ["encoder"], "prior": ["primed"], "encoder": list(TERMS)}[kept]
    terms = {name: TERMS[name] for name in names}
    settings = {
        "all_classes": {"keep": "top_k=all"},
        "prior": {"keep": "top_k=all", "prior": "mean_prediction"},
        "encoder": {"keep": "encoder"},
    }[kept]
    given = {"train_ds": {"use_lhotse": use_lhotse}}
    cached = pair(make_config, teacher, manifest, "cached", terms, targets(**settings), **copy.deepcopy(given))
    frozen = pair(make_config, teacher, manifest, "frozen", terms, **given)
    frozen.student_encoder.load_state_dict(cached.student_encoder.state_dict())
    frozen.student_decoder.load_state_dict(cached.student_decoder.state_dict())
    frozen.student_joint.load_state_dict(cached.student_joint.state_dict())
    frozen.criteria.load_state_dict(cached.criteria.state_dict())
    seen = []
    for number, loaded in enumerate(cached.train_dataloader()):
        seen += Batch.of(loaded).sample_id
        wanted, found = losses_of(frozen, loaded), losses_of(cached, loaded)
        assert wanted.keys() == found.keys() and len(found) == len(terms) + 2
        for name, value in found.items():
            # A squared difference of two log-likelihoods magnifies the rounding of each.
            rel = 1e-5 if name.endswith("sequence") else 1e-6
            assert value.item() == pytest.approx(wanted[name].item(), rel=rel, abs=1e-6), name
        of_both = [
            torch.autograd.grad(each["train_loss"], model.student_encoder.parameters(), allow_unused=True)
            for each, model in ((wanted, frozen), (found, cached))
        ]
        for one, other in zip(*of_both, strict=True):
            if one is not None:
                assert (one - other).abs().max() <= 1e-5 * max(1, one.abs().max())
        if number == 2:
            break
    assert len(set(seen)) == len(seen) >= 8 and all(name.endswith(".wav") for name in seen)


def test_eight_classes_and_float16_are_near_the_whole(make_config, teacher, targets, manifest):
    values = {}
    for name, settings in {
        "whole": {"keep": "top_k=all"},
        "half": {"keep": "top_k=all", "dtype": "float16"},
        "eight": {"keep": "top_k=8"},
    }.items():
        model = pair(
            make_config,
            teacher,
            manifest,
            "cached",
            {"encoder": TERMS["encoder"]},
            targets(**settings),
            train_ds={"shuffle": False},
        )
        values[name] = losses_of(model, next(iter(model.train_dataloader())))["train_distillation_loss"].item()
    assert values["half"] == pytest.approx(values["whole"], rel=1e-2)
    assert 0 <= values["eight"] <= values["whole"]


def test_a_saved_pair_is_restored_without_its_targets_and_its_student_leaves(
    make_config, teacher, targets, manifest, tmp_path
):
    model = pair(make_config, teacher, manifest, "cached", {"encoder": TERMS["encoder"]}, targets())
    loaded = next(iter(model.train_dataloader()))
    model.training_step(loaded, 0)["loss"].backward()
    assert all(p.grad is None for p in (*model.decoder.parameters(), *model.joint.parameters()))
    logs = model.eval().validation_pass(loaded, 0)
    assert "val_wer" in logs and not [name for name in logs if "teacher" in name]
    with open_dict(model.cfg):
        model.cfg.codert.teacher_cache = str(tmp_path / "gone")
    path = save_model(model, tmp_path / "pair.nemo")
    restored = EncDecCoDERTBPEModel.restore_from(str(path), map_location="cpu")
    assert type(restored.encoder).__name__ == "CachedEncoder"
    assert type(restored.student_model()).__name__ == "EncDecRNNTBPEModel"
    with pytest.raises(ValueError, match="no teacher model to make: this pair's teacher is stored targets"):
        restored.teacher_model()
    with pytest.raises(TargetFault, match="gone is not a folder"):
        restored.train().training_step(loaded, 0)


def test_the_decoder_of_encoder_targets_can_be_shared(make_config, teacher, targets, manifest):
    folder = targets(keep="encoder")
    model = pair(
        make_config, teacher, manifest, "cached", {"primed": TERMS["primed"]}, folder, codert={"share_decoder": True}
    )
    model._refuse_unready()
    model.training_step(next(iter(model.train_dataloader())), 0)["loss"].backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert any(p.grad is not None for p in model.student_encoder.parameters())


def test_hidden_terms_need_nothing_of_the_teacher_but_its_output(make_config, teacher, targets, manifest):
    model = pair(
        make_config, None, manifest, "cached", {"hidden": TERMS["hidden"]}, targets(keep="encoder", dtype="float16")
    )
    model._refuse_unready()
    model.training_step(next(iter(model.train_dataloader())), 0)["loss"].backward()
    assert model.step_losses["train_distillation_loss_hidden"] > 0


def test_classes_of_a_ctc_head_teach_a_hybrid_students_head(make_config, teacher, targets, manifest):
    terms = {"ctc": {"at": "ctc", "by": "kl", "weight": 0.3}, "encoder": {"at": "encoder", "weight": 0.3}}
    student = {"aux_ctc": {"ctc_loss_weight": 0.3, "decoder": CTC["aux_ctc"]["decoder"]}}
    folder = targets(at="ctc", keep="top_k=8")
    model = pair(make_config, teacher, manifest, "cached", terms, folder, student=student)
    model._refuse_unready()
    model.training_step(next(iter(model.train_dataloader())), 0)["loss"].backward()
    assert all(model.step_losses[name] > 0 for name in ("train_distillation_loss", "train_distillation_loss_ctc"))
    assert model.student_ctc_decoder.decoder_layers[0].weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="compares CTC heads but .* has classes of the encoder"):
        pair(make_config, teacher, manifest, "cached", terms, targets(), student=student)._refuse_unready()


def test_utterances_without_text_and_single_ones_are_rows_of_the_targets(make_config, teacher, targets, manifest):
    model = pair(make_config, teacher, manifest, "cached", {"encoder": TERMS["encoder"]}, targets())
    signal, signal_len, transcript, transcript_len, names = next(iter(model.train_dataloader()))
    transcript_len[1] = 0
    loaded = signal, signal_len, transcript, transcript_len, names
    model.training_step(loaded, 0)["loss"].backward()
    batch = Batch.of(loaded)
    features = model.extract_features(batch.signal, batch.signal_len)
    student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len)
    output = model.teacher.output(*features, batch, student)
    for b in range(3):
        frames = int(output.encoded_len[b])
        assert torch.equal(output.row(b).top_k.ids[0], output.top_k.ids[b, :frames])
    with pytest.raises(ValueError, match="this term of the loss needs targets of kind encoder"):
        _ = output.encoder_logits


@pytest.mark.parametrize("keep", ["encoder", "top_k=8"])
def test_a_manifest_with_lines_without_text_is_cached_and_trained_on(make_config, teacher, manifest, tmp_path, keep):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    del lines[1]["text"], lines[2]["text"]
    half, folder = tmp_path / "half.json", str(tmp_path / "targets")
    half.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = {"prior": "mean_prediction", "measure_wer": True} if keep != "encoder" else {}
    header = cache_targets(CacheSettings((teacher,), half, folder, keep=keep, progress=False, **how))
    assert header.utterances == 8 and (header.teachers[0].wer is None) == (keep == "encoder")
    loader = {"batch_size": 8, "shuffle": False}
    model = pair(make_config, teacher, half, "cached", {"primed": TERMS["primed"]}, folder, train_ds=loader)
    loaded = next(iter(model.train_dataloader()))
    assert (Batch.of(loaded).transcript_len == 0).sum() == 2
    model.training_step(loaded, 0)["loss"].backward()
    assert model.step_losses["train_distillation_loss_primed"] > 0
    bare = [part.clone() for part in loaded[:4]]
    bare[3][:] = 0  # the term alone is left
    losses = losses_of(model, (*bare, loaded[4]))
    assert set(losses) == {"train_distillation_loss_primed", "train_loss"}


REFUSED = {
    "another temperature": ({}, {"temperature": 2.0}, {}, "temperature is 2.0 but model.codert.teacher_cache"),
    "adaptive": ({}, {"temperature": "adaptive"}, {}, "temperature is adaptive but"),
    "another prior": ({}, {"prior": "mean_prediction"}, {}, "prior is mean_prediction but"),
    "the prior that was cached": ({"prior": "mean_prediction"}, {}, {}, "prior is none but"),
    "a hidden term": ({}, {"at": "hidden", "by": "mse", "layers": {1: 2}}, {}, "top_k classes .* are not enough"),
    "a sequence term": ({}, {"at": "sequence", "by": "l2"}, {}, "top_k classes .* are not enough"),
    "a joint term": ({}, {"at": "joint"}, {}, "top_k classes .* are not enough"),
    "a shared decoder": ({}, {}, {"share_decoder": True}, "share_decoder is true but"),
    "another layer": (
        {"keep": "encoder"},
        {"at": "hidden", "by": "mse", "layers": {1: 1}},
        {},
        "the output of its last layer alone, 2",
    ),
    "no networks": ({"keep": "encoder"}, {}, {"teacher_checkpoint": None}, "teacher_checkpoint is null"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_terms_that_the_targets_cannot_give_are_refused_by_name_before_the_first_step(
    make_config, teacher, targets, manifest, case
):
    settings, term, codert, message = REFUSED[case]
    term = {"at": "encoder", "weight": 0.3, **term}
    with pytest.raises(ValueError, match=message):
        model = pair(make_config, teacher, manifest, "cached", {"mine": term}, targets(**settings), codert=codert)
        model._refuse_unready()


def test_targets_of_another_model_or_of_other_frames_are_refused(make_config, teacher, targets, manifest, tmp_path):
    other, _ = save_teacher(make_config, tmp_path, "hybrid", seed=9, teacher=conformer(2, 24))
    with pytest.raises(ValueError, match="is not the model that the targets .* were made from"):
        pair(make_config, other, manifest, "cached", {"encoder": TERMS["encoder"]}, targets(keep="encoder"))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["id"], lines[7]["id"] = "clips/7.wav", "x"
    folder = manifest.parent.name
    exchanged = [{**line, "id": f"{folder}/{7 - i}.wav"} for i, line in enumerate(lines)]
    path = tmp_path / "exchanged.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in exchanged))
    model = pair(make_config, teacher, path, "cached", {"encoder": TERMS["encoder"]}, targets(keep="top_k=8"))
    with pytest.raises(TargetFault, match=r"utterance '.*wav' has \d+ target frames .* but the student has \d+"):
        model.training_step(next(iter(model.train_dataloader())), 0)
    perturbed = pair(
        make_config,
        teacher,
        manifest,
        "cached",
        {"encoder": TERMS["encoder"]},
        targets(keep="top_k=8"),
        train_ds={"use_lhotse": True, "perturb_speed": True},
    )
    with pytest.raises(TargetFault, match="Its speed is perturbed"):
        for loaded in perturbed.train_dataloader():
            perturbed.training_step(loaded, 0)
    assert len(TargetCache(targets(keep="top_k=8"))) == 8 and ADDITIVE
