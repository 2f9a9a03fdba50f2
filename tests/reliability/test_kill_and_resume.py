"""Real runs of scripts/train.py, killed by SIGKILL again and again and resumed: their end is that of a whole run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.reliability.resumed_runs import EVERY_VALIDATION, SMALL, STEPS, differences, last_checkpoint
from tests.training.resume_runs import dev_set

pytestmark = pytest.mark.reliability


class Launcher:
    """Talks to launcher.py."""

    def __init__(self, folder: Path, data: list[str]) -> None:
        self.folder, self._data = folder, data
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, str(REPOSITORY / "tests" / "reliability" / "launcher.py")]
        with open(folder / "launcher.log", "w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=environment,
            )
        assert self._process.stdout.readline().strip() == "ready", (folder / "launcher.log").read_text()

    def run(self, name: str, *overrides: str, fault: dict | None = None) -> int:
        """Exit status of one run in the folder `name`; negative: a signal."""
        arguments = [*SMALL, *self._data, f"exp_manager.exp_dir={self.folder / name}", *overrides]
        command = {"arguments": arguments, "log": str(self.folder / f"{name}.log"), "fault": fault}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def log(self, name: str) -> str:
        """What the runs in a folder have printed."""
        return (self.folder / f"{name}.log").read_text()

    def close(self) -> None:
        """End the launcher."""
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory, manifest, tokenizer_dir):
    data = [f"model.train_ds.manifest_filepath={manifest}"]
    data += [f"model.validation_ds.manifest_filepath={dev_set(manifest)}"]
    launcher = Launcher(tmp_path_factory.mktemp("killed"), [*data, f"model.tokenizer.dir={tokenizer_dir}"])
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def whole(launcher) -> dict:
    """The last checkpoint of a run that nothing has stopped, which also saves at its validations only."""
    assert launcher.run("whole") == 0, launcher.log("whole")
    assert (launcher.folder / "whole" / "quickstart" / "student.nemo").is_file()
    checkpoint = last_checkpoint(launcher.folder / "whole")
    assert checkpoint["global_step"] == STEPS
    return checkpoint


def survive(launcher: Launcher, name: str, whole: dict, faults: list[dict], *overrides: str) -> int:
    """Kill run after run, then let one come to its end and compare. Number of kills that hit."""
    kills = 0
    for fault in faults:
        status = launcher.run(name, *overrides, fault=fault)
        assert status in (0, -9), launcher.log(name)
        kills += status == -9
    assert launcher.run(name, *overrides) == 0, launcher.log(name)
    assert not differences(whole, last_checkpoint(launcher.folder / name))
    assert (launcher.folder / name / "quickstart" / "student.nemo").is_file()
    return kills


@pytest.mark.parametrize("every, count", [(1, 8), (0, 4)])
def test_killed_at_random_moments(launcher, whole, campaign, every, count):
    draw = random.Random(every)
    faults = [{"kind": "after", "seconds": draw.uniform(0.0, 0.6)} for _ in range(count)]
    kills = survive(launcher, f"random{every}", whole, faults, f"resume.every_n_steps={every}")
    assert kills >= count - 2  # a part that was quicker than its killer is not a kill
    campaign.record(
        f"SIGKILL at a random moment, checkpoint every {every or EVERY_VALIDATION} steps",
        kills,
        kills,
        "nothing: bit-equal",
    )


@pytest.mark.parametrize("every, numbers", [(1, (2, 2, 3, 2)), (0, (2, 1, 1, 1))])
def test_killed_while_a_checkpoint_is_written(launcher, whole, campaign, every, numbers):
    moments = zip(numbers, ("before", "torn", "inside", "after"), strict=True)
    faults = [{"kind": "write", "number": number, "moment": moment} for number, moment in moments]
    kills = survive(launcher, f"write{every}", whole, faults, f"resume.every_n_steps={every}")
    assert kills == len(faults)
    campaign.record("SIGKILL while a checkpoint is written", kills, kills, "nothing: bit-equal")


def test_killed_during_validation(launcher, whole, campaign):
    faults = [{"kind": "validation", "number": number} for number in (1, 3, 4, 6)]
    kills = survive(launcher, "validation", whole, faults, "resume.every_n_steps=2")
    assert kills == len(faults)
    campaign.record("SIGKILL during validation", kills, kills, "nothing: bit-equal")


def test_killed_with_the_classic_loader_and_loader_processes(launcher, campaign):
    overrides = ["model.train_ds.use_lhotse=false", "model.train_ds.num_workers=2", "resume.every_n_steps=1"]
    overrides += ["trainer.use_distributed_sampler=true"]
    assert launcher.run("classic_whole", *overrides) == 0, launcher.log("classic_whole")
    whole = last_checkpoint(launcher.folder / "classic_whole")
    faults = [{"kind": "after", "seconds": seconds} for seconds in (0.1, 0.4, 0.3)]
    kills = survive(launcher, "classic", whole, faults, *overrides)
    campaign.record(
        "SIGKILL at a random moment, classic loader, 2 loader processes", kills, kills, "nothing: bit-equal"
    )


def test_a_finished_run_that_lost_its_files_writes_them_again(launcher, whole):
    folder = launcher.folder / "whole" / "quickstart"
    (folder / "student.nemo").unlink(), (folder / "pair.nemo").unlink()
    assert launcher.run("whole") == 0, launcher.log("whole")
    assert (folder / "student.nemo").is_file() and (folder / "pair.nemo").is_file()
    assert not differences(whole, last_checkpoint(launcher.folder / "whole"))
