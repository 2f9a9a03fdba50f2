"""codert train interrupted for real: what is printed, the command that continues, the second run that is refused."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_codert.training.run_folders import last_checkpoint
from tests.conftest import REPOSITORY
from tests.training.run_configs import SMALL

STEPS = 4
SHORT = [f"trainer.max_steps={STEPS}", "trainer.val_check_interval=2", "model.train_ds.batch_size=4"]
# Ends the training when its third batch begins, as a signal from outside would.
INTERRUPTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
from nemo_codert.cli import main
from nemo_codert.training.resume import ResumeState
begin = ResumeState.on_train_batch_start
def on_train_batch_start(self, trainer, *arguments):
    if trainer.global_step == {step}:
        os.kill(os.getpid(), signal.{signal})
    return begin(self, trainer, *arguments)
ResumeState.on_train_batch_start = on_train_batch_start
sys.exit(main.main(["train", *sys.argv[1:]]))
"""


@pytest.fixture
def train(preloaded_python, manifest, tokenizer_dir, tmp_path):
    """Runs `codert train`, by a signal's name interrupted before `step`; exit status and standard error."""
    (tmp_path / "dev.json").write_text(manifest.read_text())

    def call(*arguments: str, signal: str | None = None, step: int = 3) -> tuple[int, str]:
        start = ["-m", "nemo_codert.cli.main", "train"]
        start = ["-c", INTERRUPTING.format(signal=signal, step=step)] if signal else start
        command, environment = [preloaded_python, *start, *arguments], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    call.run = [f"model.train_ds.manifest_filepath={manifest}", "model.validation_ds.manifest_filepath=dev.json"]
    call.run += [f"model.tokenizer.dir={tokenizer_dir}", "exp_manager.exp_dir=my runs", "exp_manager.name=mine"]
    call.run += ["strategy=student", "model.preprocessor.window_stride=0.01", *SMALL, *SHORT]
    return call


def printed_command(message: str) -> list[str]:
    """The arguments of the command on the last line."""
    words = shlex.split(message.strip().splitlines()[-1])
    assert words[:2] == ["codert", "train"], message
    return words[2:]


@pytest.mark.slow
@pytest.mark.parametrize("signal, step, status", [("SIGINT", 3, 130), ("SIGTERM", 2, 1)])  # SIGTERM ends a batch
def test_an_interrupted_run_prints_the_command_that_continues_it(signal, step, status, train, tmp_path):
    ended, err = train(*train.run, signal=signal, step=step)
    assert ended == status and "this command continues at step 2" in err, err
    command = printed_command(err)
    assert command == [*train.run, "--resume"]
    [folder] = (tmp_path / "my runs" / "mine").glob("2*")

    ended, err = train(*train.run)
    assert ended == 1 and f"{folder.relative_to(tmp_path)} is an unfinished run of the same name, at step 2" in err
    assert "--resume continues it, --new starts a second run" in err

    ended, err = train(*command)
    assert ended == 0 and f"continuing at step 2 of {folder.relative_to(tmp_path)}" in err, err
    assert (folder / "student.nemo").is_file() and (folder / "config.yaml").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert os.readlink(folder.parent.parent / "latest") == f"mine/{folder.name}"

    ended, err = train(*command)
    assert ended == 1 and "is finished, there is none to continue" in err


@pytest.mark.slow
def test_without_a_checkpoint_the_same_command_starts_again_and_resume_starts_a_first_run(train, tmp_path):
    ended, err = train("--resume", *train.run, signal="SIGINT", step=1)
    assert ended == 130 and "no checkpoint has been saved" in err
    assert printed_command(err) == ["--resume", *train.run]
    ended, err = train("--resume", *train.run, signal="SIGINT", step=0)
    assert ended == 130 and len(list((tmp_path / "my runs" / "mine").glob("2*"))) == 1  # no step: no folder


@pytest.mark.slow
def test_several_runs_of_one_command_are_continued_one_by_one(train):
    ended, err = train("-m", *train.run, "seed=1,2", signal="SIGINT")
    assert ended == 130, err
    command = printed_command(err)
    assert "-m" not in command and {"seed=1", "--resume"} <= set(command) and "seed=2" not in command


@pytest.mark.slow
def test_two_processes_continue_the_same_run(train, tmp_path):
    two = [*train.run, "trainer.devices=2", "trainer.strategy=ddp", f"trainer.max_steps={STEPS + 2}"]
    ended, err = train(*train.run, signal="SIGINT")
    assert ended == 130, err
    [folder] = (tmp_path / "my runs" / "mine").glob("2*")
    ended, err = train(*two, "--resume")
    assert ended == 0 and err.count(f"continuing at step 2 of {folder.relative_to(tmp_path)}") == 1, err
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert last_checkpoint(folder)[1] == STEPS + 2


def test_resume_and_new_exclude_each_other(train):
    ended, err = train("--resume", "--new", *train.run)
    assert ended == 1 and err.strip() == "error: --resume continues a run and --new starts another: give one of them"


def test_a_script_from_a_checkout_is_named_as_python_starts_it(monkeypatch, tmp_path):
    from omegaconf import OmegaConf

    from nemo_codert.cli.train import continuation

    monkeypatch.setattr(sys, "argv", ["my scripts/train.py", "seed=1"])
    cfg = OmegaConf.create({"exp_manager": {"exp_dir": str(tmp_path)}})
    text = continuation(["seed=1"], cfg, Path("absent"))
    assert text.splitlines()[-1].strip() == "python 'my scripts/train.py' seed=1"
