"""A long training takes no more memory and no longer steps at its end than at its start."""

import csv
import os
import time
from pathlib import Path

import lightning.pytorch as pl
import matplotlib
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from nemo_codert.training import run
from tests.conftest import REPOSITORY
from tests.reliability.small_runs import small_run

pytestmark = pytest.mark.reliability

STEPS = 5000
EVERY = 50  # steps between two readings
WARM = 1000  # steps until allocators and caches have what they need


class Readings(pl.Callback):
    """Step, resident memory in MiB and CPU seconds a step since the reading before."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []
        self._seconds = 0.0  # validation and checkpoints left out

    def on_train_batch_start(self, *_) -> None:
        self._started = time.process_time()

    def on_train_batch_end(self, trainer, *_) -> None:
        self._seconds += time.process_time() - self._started
        if trainer.global_step % EVERY == 0:
            self.rows.append((trainer.global_step, resident_memory(), self._seconds / EVERY))
            self._seconds = 0.0


def resident_memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def draw(rows: np.ndarray, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, seconds) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    memory.plot(rows[:, 0], rows[:, 1])
    memory.set(ylabel="resident memory, MiB", ylim=(0, 1.2 * rows[:, 1].max()))
    seconds.plot(rows[:, 0], 1000 * rows[:, 2])
    seconds.set(xlabel="optimizer step", ylabel="CPU ms per step", ylim=(0, None))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def test_five_thousand_steps_take_no_more_memory_and_no_more_time(
    manifest, tokenizer_dir, tmp_path, campaign, campaign_folder
):
    GlobalHydra.instance().clear()
    every_500 = ["trainer.val_check_interval=500", "model.train_ds.batch_size=2"]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose("fsdd", [*small_run(tmp_path, manifest, tokenizer_dir, steps=STEPS), *every_500])
    prepared = run.prepare(cfg)
    readings = Readings()
    prepared.trainer.callbacks.append(readings)
    prepared.trainer.fit(prepared.model)

    rows = np.array(readings.rows)
    with (campaign_folder / "soak.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "resident_mib", "cpu_seconds_per_step"), *rows.tolist()])
    draw(rows, campaign_folder / "soak.png")
    assert rows[-1, 0] == STEPS
    steps, memory, seconds = rows[rows[:, 0] > WARM].T
    growth = 1000 * np.polyfit(steps, memory, 1)[0]  # MiB per 1000 steps
    # Lower quartiles: whatever else the machine does makes steps longer, never shorter.
    first, *_, last = (np.quantile(part, 0.25) for part in np.array_split(seconds, 3))
    flat = growth < 2.0 and last < 1.25 * first  # a leaked batch of features a step: some 40 MiB per 1000 steps
    lost = f"memory {growth:+.2f} MiB per 1000 steps, a step's CPU time {last / first:.2f} of what it was at first"
    campaign.record(f"{STEPS} steps without a stop", injected=1, survived=int(flat), lost=lost)
    assert flat, lost
