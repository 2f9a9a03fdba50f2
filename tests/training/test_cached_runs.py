"""A run with stored targets, from a config to files, and faults of the targets found before its first step."""

import json

import pytest
import soundfile
from omegaconf import OmegaConf, open_dict

from nemo_codert.data.target_cache import shard_name
from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets
from nemo_codert.training import run as runs
from nemo_codert.training.readiness import check_training
from tests.conftest import ADDITIVE, conformer, tone
from tests.models.teacher_files import save_teacher


@pytest.fixture
def cached_run(make_config, tokenizer_dir, tmp_path):
    """Config of a run on a corpus of its own, whose targets are stored."""
    lines = []
    for i, text in enumerate(["turn the light on", "stop the music please", "set the clock to ten", "open the door"]):
        audio = tone(0.8 + 0.1 * i, seed=i)
        soundfile.write(tmp_path / f"{i}.wav", audio, 16000)
        lines.append({"audio_filepath": f"{i}.wav", "duration": len(audio) / 16000, "text": text})
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
