"""What is refused before PyTorch and NeMo are imported, by the commands as they are started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.training.early_checks import (
    LOGGERS,
    OPTIMISERS,
    QUICKLY_READ,
    SCHEDULES,
    early_problems,
    with_run_defaults,
)
from tests.conftest import REPOSITORY
from tests.training.run_configs import SMALL

pytestmark = pytest.mark.unit

# Runs a command and prints which of the heavy packages it has imported when it ends.
PROBE = """
import runpy, sys
try:
    {start}
except SystemExit as end:
    print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
print([name for name in ("torch", "nemo", "lightning", "lhotse") if name in sys.modules])
"""
STARTS = {
    "codert": "from nemo_codert.cli.main import main; sys.argv[1:1] = ['train']; sys.exit(main())",
    "script": f"runpy.run_path({str(REPOSITORY / 'scripts' / 'train.py')!r}, run_name='__main__')",
    "check": "from nemo_codert.cli.main import main; sys.argv[1:1] = ['check']; sys.exit(main())",
}


@pytest.fixture
def speech(tmp_path) -> list[str]:
    """Overrides with data that are there."""
    line = {"audio_filepath": "a.wav", "duration": 1.0, "text": "yes"}
    for name in ("train", "dev"):
        (tmp_path / f"{name}.json").write_text(json.dumps(line) + "\n")
    data = ["model.train_ds.manifest_filepath=train.json", "model.validation_ds.manifest_filepath=dev.json"]
    return [*data, "exp_manager.exp_dir=runs", "strategy=static", "model.codert.teacher_checkpoint=stt_en", *SMALL]


@pytest.fixture
def refused(tmp_path, speech, tokenizer_dir):
    """Runs a command to its end: what it has printed to standard error. It has imported nothing heavy."""

    def call(*overrides: str | Path, start: str = "codert") -> str:
        common = [*speech, f"model.tokenizer.dir={tokenizer_dir}"]
        command = [sys.executable, "-c", PROBE.format(start=STARTS[start]), *common, *map(str, overrides)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip().splitlines()[-1] == "[]", done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "Loading" not in done.stderr and not (tmp_path / "runs").exists()
        return done.stderr

    return call


@pytest.mark.parametrize("start", STARTS)
def test_every_fault_of_a_config_and_its_files_is_listed_before_anything_heavy_is_imported(start, refused):
    swa = "{_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.1}"
    unknown = "{_target_: lightning.pytorch.callbacks.EarlyStoping, monitor: val_wer}"
    faults = {
        "model.codert.teacher_checkpoint=absent.nemo": "teacher_checkpoint is 'absent.nemo': no such file",
        "model.train_ds.manifest_filepath=absent.json": "train_ds.manifest_filepath: absent.json is not a file",
        "+model.test_ds.manifest_filepath=test.json": "test_ds.manifest_filepath: test.json: no such file",
        "model.tokenizer.dir=absent": "model.tokenizer.dir is 'absent': no tokenizer.model in there",
        "model.optim.name=adamm": "model.optim.name is 'adamm', wanted one of sgd, adam",
        "model.optim.sched.name=Cosine": "model.optim.sched.name is 'Cosine', wanted one of WarmupPolicy",
        f"+trainer.callbacks=[{swa},{unknown}]": "StochasticWeightAveraging': the files of a run would hold other",
        "exp_manager.checkpoint_callback_params.monitor=val_were": "monitor is 'val_were', which nothing is logged by",
        "model.codert.non_finite.action=halt": "model.codert.non_finite.action is 'halt'",
        "trainer.val_check_interval=0": "trainer.val_check_interval is 0, wanted",
        "exp_manager.create_wandb_logger=true": "",  # refused where it is not installed
    }
    err = refused(*faults, start=start)
    if "model.codert.non_finite.action is 'halt'" in err:  # the model's faults hide the terms that are logged
        faults.pop("exp_manager.checkpoint_callback_params.monitor=val_were")
    for said in faults.values():
        assert said in err, err
    assert "Lightning has no such callback, the nearest is EarlyStopping" in err


@pytest.mark.parametrize(
    "override, said",
    [
        ("trainer.max_step=3", "did you mean 'trainer.max_steps'?"),
        ("--config-name=fsd", "did you mean 'fsdd'? There are fsdd, "),
        ("strategy=statik", "did you mean 'static'? There are "),
        (
            "exp_manager.checkpoint_callback_params.monitor=val_were",
            "monitor is 'val_were', which nothing is logged by",
        ),
        ("model.optim.lr=[", "cannot be composed"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_heavy_is_imported(override, said, refused):
    assert said in refused(override)


def test_stored_targets_that_are_not_there_are_named(refused):
    assert "model.codert.teacher_cache: " in refused("strategy=cached", "model.codert.teacher_cache=absent")


def test_a_second_run_is_refused_before_anything_heavy_is_imported(refused, tmp_path):
    folder = tmp_path / "elsewhere" / "fsdd" / "first"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": 12}, folder / "checkpoints" / "a-last.ckpt")
    err = refused("exp_manager.exp_dir=elsewhere")
    assert "elsewhere/fsdd/first is an unfinished run of the same name, at step 12: --resume continues it" in err


def test_a_large_manifest_is_left_to_the_start_of_the_run(tmp_path, tokenizer_dir):
    cfg = OmegaConf.create({"model": {"train_ds": {"manifest_filepath": str(tmp_path / "train.json")}}})
    (tmp_path / "train.json").write_text("no JSON\n")
    assert "train.json" in "\n".join(early_problems(with_run_defaults(cfg)))
    (tmp_path / "train.json").write_text("no JSON\n" + " " * QUICKLY_READ)
    assert "train.json" not in "\n".join(early_problems(with_run_defaults(cfg)))


def test_a_config_that_only_nemo_can_resolve_is_left_to_it():
    cfg = OmegaConf.create({"model": {"optim": {"lr": "${of_nemo:1}"}}})
    assert early_problems(with_run_defaults(cfg)) == []


def test_a_logger_that_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("nemo_codert.training.early_checks.find_spec", lambda name: None)
    cfg = OmegaConf.create({"exp_manager": {f"create_{name}_logger": True for name in LOGGERS}})
    text = "\n".join(early_problems(with_run_defaults(cfg)))
    assert all(
        f"create_{name}_logger is true but {name} is not installed: pip install {name}," in text for name in LOGGERS
    )


@pytest.mark.nemo
def test_the_names_are_those_of_nemo_and_lightning():
    import lightning.pytorch.callbacks
    from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
    from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS

    from nemo_codert.config.trainer_keys import LIGHTNING_CALLBACKS

    assert set(SCHEDULES) == set(AVAILABLE_SCHEDULERS) and set(AVAILABLE_OPTIMIZERS) <= set(OPTIMISERS)
    assert set(lightning.pytorch.callbacks.__all__) == set(LIGHTNING_CALLBACKS)
