"""Two processes on the CPU (gloo): every strategy, gradients, metrics, sharded data, and a process that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, SENTENCES, STRATEGIES
from tests.reliability.resumed_runs import SMALL, differences, last_checkpoint
from tests.training.resume_runs import dev_set
from tests.training.sharded_data import write_shards

pytestmark = pytest.mark.reliability
NAMES = ["student", *STRATEGIES, "ema"]
EMA = {"teacher": "ema", "share_decoder": False, "distillation": {"views": {"at": "joint", "nodes": "occupied"}}}
DATA = {"sample_rate": 16000, "batch_size": 2, "num_workers": 0}
LHOTSE = {"use_lhotse": True, "seed": 0, "shard_seed": 0, "pretokenize": False}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def both(command: list[str], folder: Path, timeout: float) -> None:
    """Run a command as ranks 0 and 1 and wait for both."""
    environment = {"WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in (0, 1):
        log = open(folder / f"rank{rank}.log", "w")
        given = {**environment, "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(command, cwd=folder, env=given, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in processes:
            process.wait(timeout)
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def answers(tmp_path_factory, make_config, manifest, session_batch) -> list[dict]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("two")
    blocks = write_shards(manifest, folder / "tarred")
    plain = {**DATA, "manifest_filepath": str(manifest)}
    evaluated = {"validation_ds": {**plain, "shuffle": False, "manifest_filepath": str(dev_set(manifest))}}
    for name in NAMES:
        kind = "tandem" if name in ("student", "ema") else name
        cfg = make_config(kind, train_ds={**plain, "shuffle": True}, **evaluated)
        cfg.codert = EMA if name == "ema" else cfg.codert
        OmegaConf.save(cfg, folder / f"{name}.yaml")
    # With a number for a seed both would read the same: nemo_codert.training.run_checks refuses it.
    for kind, more in (("classic", {}), ("lhotse", {**LHOTSE, "shard_seed": "randomized", "num_workers": 1})):
        cfg = make_config(train_ds={**DATA, "shuffle": True, **blocks[kind], **more}, **evaluated)
        OmegaConf.save(cfg, folder / f"tarred_{kind}.yaml")
    torch.save(list(session_batch), folder / "batch.pt")
    both([sys.executable, str(REPOSITORY / "tests" / "reliability" / "two_processes.py"), str(folder)], folder, 400)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def answer(answers: list[dict], task: str) -> tuple[dict, dict]:
    found = tuple(one.get(task, {"error": "not reached"}) for one in answers)
    assert not any("error" in one for one in found), [one.get("error") for one in found]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_trains_without_searching_unused_parameters(answers, name):
    first, second = answer(answers, f"run {name}")
    assert first["steps"] == second["steps"] == 3
    assert first["weights"] == second["weights"]
    assert first["metrics"]["val_wer"] == second["metrics"]["val_wer"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_one_process_with_the_whole_batch(answers, name):
    for found in answer(answers, f"gradients {name}"):
        # The same means in another order of float32 additions, through the networks and back.
        assert found["same"] and found["difference"] < 1e-5, found  # 1.5e-6 seen


def test_word_errors_are_summed_over_the_processes(answers):
    for found in answer(answers, "metrics"):
        assert found == {"val_wer": pytest.approx(6 / 10), "val_wer_teacher": pytest.approx(6 / 10)}


def test_every_utterance_of_scattered_shards_is_seen_once(answers, campaign):
    first, second = (found["seen"] for found in answer(answers, "tarred_classic"))
    assert len(first) == len(second) == 4 and sorted(first + second) == sorted(SENTENCES)


def test_lhotse_shares_out_a_stream_of_shards(answers):
    first, second = (found["seen"] for found in answer(answers, "tarred_lhotse"))
    assert len(first) == len(second) == 8 and first != second
    assert set(first) | set(second) <= set(SENTENCES)


# ---- real runs of scripts/train.py ----------------------------------------------------------------------------------

WRITES = """
import os, sys
if os.environ.get("LOCAL_RANK") == "1":
    log = os.open(os.environ["WRITES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and arguments[1] and set(arguments[1]) & set("wax+"):
            os.write(log, (arguments[0] + "\\n").encode())
    sys.addaudithook(hook)
"""


class Pair:
    """Starts scripts/train.py on two processes; Lightning starts the second."""

    def __init__(self, folder: Path, data: list[str]) -> None:
        self.folder, self._data = folder, data
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(WRITES)

    def start(self, name: str, *overrides: str) -> subprocess.Popen:
        ddp = ["trainer.devices=2", "trainer.strategy=ddp", f"exp_manager.exp_dir={self.folder / name}"]
        command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *SMALL, *self._data, *ddp, *overrides]
        given = {"PYTHONPATH": f"{self.folder / 'site'}:{REPOSITORY}", "WRITES": str(self.folder / f"{name}.writes")}
        given |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
        with open(self.folder / f"{name}.log", "a") as log:
            return subprocess.Popen(command, cwd=self.folder, env={**os.environ, **given}, stdout=log, stderr=log)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, manifest, tokenizer_dir) -> Pair:
    data = [f"model.train_ds.manifest_filepath={manifest}"]
    data += [f"model.validation_ds.manifest_filepath={dev_set(manifest)}"]
    return Pair(tmp_path_factory.mktemp("pair"), [*data, f"model.tokenizer.dir={tokenizer_dir}"])


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the second process in /proc")
def test_a_process_that_dies_ends_the_run_and_the_run_can_be_resumed(pair, campaign):
    assert pair.start("whole").wait(200) == 0, pair.log("whole")
    whole = last_checkpoint(pair.folder / "whole")
    written = (pair.folder / "whole.writes").read_text().split("\n")
    assert not [name for name in written if str(pair.folder / "whole") in name]  # all files are rank 0's

    process = pair.start("killed", "resume.every_n_steps=1")
    checkpoints = pair.folder / "killed" / "quickstart" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*-last.ckpt")), 120)
    (second,) = children(process)
    os.kill(second, signal.SIGKILL)
    begin = time.monotonic()
    assert process.wait(60) != 0
    seconds = time.monotonic() - begin
    assert pair.start("killed", "resume.every_n_steps=1").wait(200) == 0, pair.log("killed")
    assert not differences(whole, last_checkpoint(pair.folder / "killed"))
    assert (pair.folder / "killed" / "quickstart" / "student.nemo").is_file()
    campaign.record(
        "SIGKILL of one of two processes", 1, 1, f"nothing: bit-equal; the run ended after {seconds:.0f} s"
    )
