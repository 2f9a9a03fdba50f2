"""Training of a comparison's cells in processes of their own, some at a time; an interrupted comparison can continue.

A cell's folder holds its command, its log, its run and, when the cell is finished, `result.json`. The trainings hold
the comparison's lock too, so that the lock is free when the last of them has ended for any reason.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from nemo_codert.compare.plan import (
    TARGET_FOLDER,
    TEACHER,
    TEACHER_WEIGHTS,
    Cell,
    Settings,
    target_arguments,
    teacher_of,
    training_arguments,
)
from nemo_codert.compare.results import RESULT_FILE, finish_cell, is_finished, source_hash

LOCK_FILE = "comparison.lock"
LOG_FILE = "train.log"
COMMAND_FILE = "command.sh"
LOG_TAIL = 15  # lines of a failed training's log that are shown
POLL_SECONDS = 0.5
GRACE_SECONDS = 10  # time between SIGTERM and SIGKILL for a training


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a comparison's folder; yields the open lock file, which the trainings inherit.

    Raises:
        ValueError: another comparison, or a training that another one left behind, holds the lock.
    """
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by another comparison (begun by process {file.read().strip() or 'unknown'}) or a "
                "training that it left behind. Wait for it, or end it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@dataclass
class Runner:
    """Trainer of cells.

    trainer: the command to which a cell's arguments are appended. cacher: the command that stores targets. lock: open
    file that every training inherits. on_finish: called after every finished cell. failed: cells that failed in this
    call.
    """

    settings: Settings
    data_dir: Path
    folder: Path
    trainer: Sequence[str]
    jobs: int
    keep_models: bool
    lock: int
    cacher: Sequence[str] = ()
    on_finish: Callable[[], None] = lambda: None
    failed: list[Cell] = field(default_factory=list)
    _running: dict[Cell, tuple[subprocess.Popen, float]] = field(default_factory=dict)
    _cpu_seconds: dict[int, float] = field(default_factory=dict)  # process id of an ended training: its CPU time
    _code: dict[Cell, str] = field(default_factory=dict)  # hash of the code at the start of a training
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], finished_seconds: dict[str, list[float]]) -> None:
        """Train `cells` in order, students of a pre-trained teacher after it. An interrupt stops all trainings.

        Args:
            finished_seconds: wall times of finished cells by strategy, for the estimate of the remaining time.
        """
        self._seconds = finished_seconds
        waiting = list(cells)
        # tqdm's own estimate would take all cells as alike; without a terminal a line for each cell is enough.
        bar = tqdm(total=len(cells), disable=None, bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{desc}")
        try:
            while waiting or self._running:
                self._start_some(waiting)
                for cell in [cell for cell, (process, _) in self._running.items() if self._has_ended(process)]:
                    self._end(cell, waiting)
                bar.n = len(cells) - len(waiting) - len(self._running)
                bar.set_description_str(self._state(waiting))
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_all()
            bar.close()

    def _has_ended(self, process: subprocess.Popen) -> bool:
        """Return whether a training has ended; note the time that it and its own processes used."""
        if process.returncode is None:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                self._cpu_seconds[pid] = usage.ru_utime + usage.ru_stime
        return process.returncode is not None

    def _start_some(self, waiting: list[Cell]) -> None:
        for cell in list(waiting):
            if len(self._running) >= self.jobs:
                return
            teacher = teacher_of(self.settings, cell)
            if fault := self._teacher_fault(teacher):
                waiting.remove(cell)
                self.failed.append(cell)
                _say(f"{cell}: not started, {fault}")
            elif teacher is None or is_finished(teacher, self.folder):
                waiting.remove(cell)
                self._start(cell)

    def _teacher_fault(self, teacher: Cell | None) -> str | None:
        if teacher in self.failed:
            return "its teacher failed"
        if teacher is None or not is_finished(teacher, self.folder):
            return None
        weights, result = (self.folder / teacher.folder / name for name in (TEACHER_WEIGHTS, RESULT_FILE))
        return None if weights.is_file() else f"{weights} is gone: delete {result}, and the teacher is trained again"

    def _start(self, cell: Cell) -> None:
        folder = self.folder / cell.folder
        shutil.rmtree(folder, ignore_errors=True)  # an attempt that did not finish may have left files
        folder.mkdir(parents=True)
        paths = str(self.data_dir), str(self.folder)
        command = [*self.trainer, *training_arguments(self.settings, cell, *paths)]
        targets = target_arguments(self.settings, cell, *paths)
        threads = {f"{name}_NUM_THREADS": str(self.settings.threads) for name in ("OMP", "MKL")}
        shown = " ".join(f"{key}={value}" for key, value in threads.items())
        commands = [[*self.cacher, *targets], command] if targets else [command]
        script = folder / COMMAND_FILE
        lines = [f"{shown} \\\n  {shlex.join(words)}\n" for words in commands]
        script.write_text("".join(lines), encoding="utf-8")
        self._code[cell] = source_hash()
        with (folder / LOG_FILE).open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-e", str(script)] if targets else command,
                env={**os.environ, **threads},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt reaches this process alone, which ends the trainings
                pass_fds=(self.lock,),
            )
        self._running[cell] = process, time.monotonic()

    def _end(self, cell: Cell, waiting: Sequence[Cell]) -> None:
        process, start = self._running.pop(cell)
        seconds, folder = time.monotonic() - start, self.folder / cell.folder
        fault = f"exit status {process.returncode}" if process.returncode else None
        if fault is None:
            try:
                corpus = self.data_dir / self.settings.folds[cell.fold].folder
                used = self._cpu_seconds.get(process.pid)
                finish_cell(self.settings, cell, folder, corpus, seconds, self._code[cell], used)
                self.on_finish()
            except (ValueError, OSError, KeyError) as error:
                fault = str(error)
        if fault is not None:
            self.failed.append(cell)
            _say(f"{cell}: FAILED, {fault}. The end of {folder / LOG_FILE}:\n{_tail(folder / LOG_FILE)}")
            return
        self._seconds.setdefault(cell.strategy, []).append(seconds)
        for path in (folder / "run" / "checkpoints", folder / TARGET_FOLDER):
            shutil.rmtree(path, ignore_errors=True)
        if not self.keep_models and cell.strategy != TEACHER:  # its students may follow
            for model in (folder / "run").glob("*.nemo"):
                model.unlink()
        cells = len(waiting) + len(self._running)
        _say(f"{cell}: finished in {clock(seconds)}; {cells} cells, {clock(self._left(waiting))} left")

    def _state(self, waiting: Sequence[Cell]) -> str:
        left = f", {clock(self._left(waiting))} left" if any(self._seconds.values()) else ""
        running = "; ".join(f"{cell} {clock(time.monotonic() - start)}" for cell, (_, start) in self._running.items())
        return left + (f" | {running}" if running else "")

    def _left(self, waiting: Sequence[Cell]) -> float:
        """Return seconds left by the mean of finished cells of the same strategy, else of all that are finished."""
        known = [seconds for own in self._seconds.values() for seconds in own]
        expected = {name: fmean(own) for name, own in self._seconds.items() if own}
        started = [
            max(0.0, expected.get(cell.strategy, fmean(known)) - (time.monotonic() - start))
            for cell, (_, start) in self._running.items()
        ]
        cells = [*started, *(expected.get(cell.strategy, fmean(known)) for cell in waiting)]
        return sum(cells) / max(1, min(self.jobs, len(cells)))

    def _stop_all(self) -> None:
        processes = [process for process, _ in self._running.values()]
        try:
            for process in processes:
                _signal_group(process, signal.SIGTERM)
            end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < end and any(process.poll() is None for process in processes):
                time.sleep(0.05)
        finally:  # a second interrupt ends the grace time; no training survives
            self._running.clear()
            for process in processes:
                _signal_group(process, signal.SIGKILL)  # also remaining children of a training that succeeded
            for process in processes:
                process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to a training and its own children, none of which may survive."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # standard error is unbuffered, also in a file


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-LOG_TAIL:])


def clock(seconds: float) -> str:
    """Format hours, minutes and seconds: 3725 -> 1:02:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
