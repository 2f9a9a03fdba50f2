"""A run with stored targets, from a config to files, and faults of the targets found before its first step."""

import json

import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from omegaconf import OmegaConf, open_dict

from nemo_codert.data.target_cache import shard_name
from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets
from nemo_codert.training import run as runs
from nemo_codert.training.readiness import check_training
from tests.conftest import ADDITIVE, STOCK, conformer, tone
from tests.models.teacher_files import save_teacher
from tests.training.sharded_data import write_shards


@pytest.fixture
def cached_run(make_config, tokenizer_dir, tmp_path, request):
    """Config of a run on a corpus of its own, whose targets are stored; with `param` true its lines have ids."""
    lines, has_ids = [], getattr(request, "param", False)
    for i, text in enumerate(["turn the light on", "stop the music please", "set the clock to ten", "open the door"]):
        audio = tone(0.8 + 0.1 * i, seed=i)
        soundfile.write(tmp_path / f"{i}.wav", audio, 16000)
        own = {"id": f"utterance {i}"} if has_ids else {}
        lines.append({"audio_filepath": f"{i}.wav", "duration": len(audio) / 16000, "text": text, **own})
    manifest = tmp_path / "train.json"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    teacher, _ = save_teacher(make_config, tmp_path, "rnnt", teacher=conformer(2, 24))
    cache_targets(CacheSettings((teacher,), manifest, tmp_path / "targets", progress=False))
    data = {"manifest_filepath": str(manifest), "sample_rate": 16000, "batch_size": 2, "shuffle": True}
    cfg = make_config("static", joint=ADDITIVE, teacher=conformer(1, 16))  # the block of the teacher is not read
    with open_dict(cfg):
        cfg.codert = {"teacher": "cached", "teacher_cache": str(tmp_path / "targets"), "share_decoder": False}
        cfg.codert.distillation = {"encoder": {"at": "encoder", "weight": 0.3}}
        cfg.train_ds, cfg.validation_ds = data, {**data, "shuffle": False}
        cfg.test_ds = {"manifest_filepath": str(manifest)}
    trainer = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None, "max_epochs": -1}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    monitor = {"monitor": "val_wer", "mode": "min", "save_top_k": 1}
    manager = {
        "exp_dir": str(tmp_path / "runs"),
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": monitor,
    }
    return OmegaConf.create(
        {
            "train": "pair",
            "seed": 1,
            "model": OmegaConf.to_container(cfg),
            "trainer": {**trainer, **quiet, "enable_model_summary": False, "num_sanity_val_steps": 0},
            "exp_manager": {**manager, "create_checkpoint_callback": True, "create_tensorboard_logger": False},
        }
    )


def test_a_run_trains_from_stored_targets_and_leaves_a_stock_student(cached_run):
    run = runs.train(cached_run)
    assert run.trainer.global_step == 2
    names = {path.name for path in run.folder.iterdir()}
    assert {"pair.nemo", "student.nemo", "student.md", "predictions"} <= names and "teacher_report.json" not in names
    assert [path.name for path in (run.folder / "predictions").iterdir()] == ["student"]
    assert "targets" in (run.folder / "student.md").read_text()
    assert run.model.loaded == {} and list(run.model.encoder.parameters()) == []


def missing(folder):
    lines = (folder / "train.json").read_text().splitlines()
    new = json.dumps({**json.loads(lines[0]), "id": "a_new_one"})
    (folder / "train.json").write_text("\n".join([*lines, new]) + "\n")


def stale(folder):
    soundfile.write(folder / "2.wav", tone(1.0, seed=77), 16000)


def damaged(folder):
    path = folder / "targets" / shard_name(1)
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)


def torn(folder):
    path = folder / "targets" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-3])


FAULTS = {
    "missing": (missing, "1 of 5 training utterances have no targets .'a_new_one'."),
    "stale": (stale, r"the audio of 1 utterances changed after their targets were made \('.*/2.wav'\)"),
    "damaged": (damaged, "shard-00001.npy is damaged"),
    "torn": (torn, "shard-00001.npy has .* bytes, the header states"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_targets_that_do_not_fit_the_data_are_found_before_the_first_step(cached_run, tmp_path, fault):
    change, message = FAULTS[fault]
    change(tmp_path)
    for check in (runs.prepare, check_training):
        with pytest.raises(ValueError, match=message):
            check(cached_run)


CONFIGS = {
    "no folder": ({"codert": {"teacher_cache": None}}, "teacher_cache is null: give the folder"),
    "another folder": ({"codert": {"teacher_cache": "/nowhere"}}, "teacher_cache: /nowhere is not a folder"),
    "another temperature": (
        {"codert": {"distillation": {"encoder": {"temperature": 2.0}}}},
        "distillation.encoder.temperature is 2.0",
    ),
    "perturbed": ({"train_ds": {"use_lhotse": True, "perturb_speed": True}}, "train_ds.perturb_speed is True"),
    "layers of the teacher": ({"student": {"init_from_teacher": True}}, "its layers are not there"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_that_stored_targets_cannot_meet_are_named(cached_run, case):
    changes, message = CONFIGS[case]
    with open_dict(cached_run):
        cached_run.model = OmegaConf.merge(cached_run.model, changes)
    with pytest.raises(ValueError, match=message):
        runs.checked_run(cached_run)


def test_a_cached_teacher_has_no_word_error_rate_to_choose_a_checkpoint_by(cached_run):
    cached_run.exp_manager.checkpoint_callback_params.monitor = "val_wer_teacher"
    with pytest.raises(ValueError, match="monitor is 'val_wer_teacher', which nothing is logged by"):
        runs.checked_run(cached_run)


def write_shar(manifest, folder) -> dict:
    """Write a Shar folder of a manifest's utterances; returns its data block."""
    folder.mkdir()
    cuts = []
    for i, line in enumerate(manifest.read_text().splitlines()):
        entry = json.loads(line)
        cut = Recording.from_file(manifest.parent / entry["audio_filepath"]).to_cut()
        cut.supervisions = [SupervisionSegment(str(i), cut.recording.id, 0.0, cut.duration, text=entry["text"])]
        cut.custom = {"id": entry["id"]}
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_shar(folder, fields={"recording": "wav"}, shard_size=2)
    return {"shar_path": str(folder), "manifest_filepath": None}


def write_tarred(manifest, folder) -> dict[str, dict]:
    """Write tarred audio of a manifest's utterances; returns the data block of each loader."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    absolute = [{**line, "audio_filepath": str(manifest.parent / line["audio_filepath"])} for line in lines]
    (manifest.parent / "absolute.json").write_text("".join(json.dumps(line) + "\n" for line in absolute))
    return write_shards(manifest.parent / "absolute.json", folder)


@pytest.mark.parametrize("teacher", ["cached", "frozen"])
@pytest.mark.parametrize("kind", ["tarred_classic", "tarred_lhotse", "shar"])
@pytest.mark.parametrize("cached_run", [True], indirect=True, ids=["ids"])
def test_shards_are_trained_with_stored_targets_and_with_a_frozen_teacher(cached_run, tmp_path, teacher, kind):
    manifest, model = tmp_path / "train.json", cached_run.model
    if kind == "shar":
        block = write_shar(manifest, tmp_path / "shar")
    else:
        block = write_tarred(manifest, tmp_path / "tarred")[kind.partition("_")[2]]
    with open_dict(cached_run):
        cached_run.trainer.limit_train_batches = 2
        model.train_ds = {**model.train_ds, **block, "use_lhotse": kind != "tarred_classic", "shuffle": True}
        model.train_ds.seed = model.train_ds.shard_seed = 1
        if teacher == "frozen":
            model.codert.update(teacher="frozen", teacher_cache=None, teacher_checkpoint=str(tmp_path / "rnnt.nemo"))
            model.encoder = OmegaConf.create(conformer(2, 24))
            model.model_defaults.enc_hidden = 24
            model.joint._target_ = STOCK
    run = runs.train(cached_run)
    assert run.trainer.global_step == 2
    assert run.model.step_losses["train_distillation_loss"] > 0


def test_tarred_lines_without_an_id_are_named_with_the_remedy(cached_run, tmp_path):
    block = write_tarred(tmp_path / "train.json", tmp_path / "tarred")["lhotse"]
    with open_dict(cached_run):
        cached_run.trainer.limit_train_batches = 2
        cached_run.model.train_ds = {**cached_run.model.train_ds, **block, "use_lhotse": True, "seed": 1}
        cached_run.model.train_ds.shard_seed = 1
    with pytest.raises(
        ValueError, match=r"'\d.wav' has no targets in .*, as in tarred data, are not ids: give each line an `id`"
    ):
        runs.train(cached_run)
