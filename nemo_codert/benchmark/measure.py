"""Measurement of time and memory: rounds in turns within one process, peak memory in a process of its own.

Cases to be compared run in turns, so that a busy machine slows all of them alike, and ratios are taken round by round.
Imports torch, numpy and tqdm only; a case imports its own packages in `prepare`.
"""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KIBIBYTE = 1024


class Case(Protocol):
    """A case to measure. Picklable: a fresh process prepares the case again to measure its memory."""

    @property
    def name(self) -> str:
        """Name of the row."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""

    @property
    def slow(self) -> bool:
        """True for a case that is measured in a few rounds only."""

    def prepare(self) -> Callable[[], Any]:
        """Make inputs and modules and return the call to time, which leaves nothing additional allocated."""


@dataclass(frozen=True)
class MeasureSettings:
    """rounds, slow_rounds: timed calls of a case. threads: torch's, None: unchanged. memory: measure memory, too."""

    rounds: int = 15
    slow_rounds: int = 2
    threads: int | None = None
    memory: bool = True


@dataclass(frozen=True)
class PeakMemory:
    """Largest number of bytes during a call, beyond those allocated before it.

    allocator: counted by torch's allocator (CPU or CUDA); None for a slow case on the CPU, NeMo's loss, whose 500
    allocations for every lattice cell are too many to record. resident: of the whole process, NumPy and Numba
    included, counted by the kernel; None on CUDA and where the kernel gives no count.
    """

    allocator: int | None
    resident: int | None = None

    @property
    def peak(self) -> int | None:
        """Figure of the allocator, or that of the kernel if there is none."""
        return self.resident if self.allocator is None else self.allocator


@dataclass(frozen=True)
class Measured:
    """One case: seconds of each round, the result of the first call (not timed), and the memory if measured."""

    seconds: list[float]
    first: Any
    memory: PeakMemory | None = None


def measure(cases: Sequence[Case], settings: MeasureSettings, title: str) -> dict[str, Measured]:
    """Time the cases in turns, then measure the memory of each in its own process. Shows a bar called `title`."""
    rounds = {case.name: settings.slow_rounds if case.slow else settings.rounds for case in cases}
    total = sum(rounds.values()) + len(cases) * (2 if settings.memory else 1)
    with tqdm(total=total, desc=title, unit="call", mininterval=1.0) as bar:
        runs = {case.name: case.prepare() for case in cases}
        on_cuda = any(case.device == "cuda" for case in cases)
        seconds, first = time_in_turns(runs, rounds, torch.cuda.synchronize if on_cuda else None, bar)
        runs.clear()
        if on_cuda:  # memory that this process caches is not available to the next ones
            torch.cuda.empty_cache()
        memory: dict[str, PeakMemory | None] = {}
        for case in cases if settings.memory else ():
            bar.set_postfix_str(f"memory of {case.name}")
            memory[case.name] = peak_memory_in_own_process(case, settings.threads)
            bar.update()
        bar.set_postfix_str("")
    return {name: Measured(seconds[name], first[name], memory.get(name)) for name in seconds}


def time_in_turns(
    runs: dict[str, Callable[[], Any]],
    rounds: dict[str, int],
    synchronize: Callable[[], None] | None = None,
    bar: tqdm | None = None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time all runs, one call of each in turn; return the seconds of every round and the results of untimed calls.

    rounds: number for each run; a run with fewer is in the first rounds only. synchronize: waits for the device.
    """
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    first = {}
    for turn in range(max(rounds.values()) + 1):
        for name, run in runs.items():
            if turn > rounds[name]:
                continue
            wait()
            start = time.perf_counter()
            result = run()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            else:
                first[name] = result
            del result
            if bar is not None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()
    return seconds, first


def paired_ratio(numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]]) -> float:
    """Return the median, over the common rounds, of (sum of the numerators) / (sum of the denominators)."""
    rounds = min(len(seconds) for seconds in (*numerators, *denominators))
    pairs = ((sum(s[i] for s in numerators), sum(s[i] for s in denominators)) for i in range(rounds))
    return statistics.median(above / below for above, below in pairs)


# ---- memory --------------------------------------------------------------------------------------------------------


def peak_memory_in_own_process(case: Case, threads: int | None = None) -> PeakMemory | None:
    """Measure `peak_memory` of a case in a fresh process; None if the process ran out of memory (or the GPU did).

    threads: torch's in that process. An exception in the process is raised here.
    """
    # A pool of one process distinguishes a killed process from a slow one, and passes exceptions on.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_keep_silent) as pool:
        try:
            return pool.submit(_prepared_peak, case, threads).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return None


def _prepared_peak(case: Case, threads: int | None) -> PeakMemory:
    if threads is not None:
        torch.set_num_threads(threads)
    return peak_memory(case.prepare(), case.device, record=not case.slow)


def _keep_silent() -> None:
    """Silence the messages of libraries at import; an exception still reaches the parent."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)


def peak_memory(run: Callable[[], Any], device: str = "cpu", record: bool = True) -> PeakMemory:
    """Measure the peak memory of one call, after one that compiles and fills caches. `run` must free all memory.

    record: on the CPU, also record every allocation, in one more call.
    """
    run()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return PeakMemory(torch.cuda.max_memory_allocated() - before)
    resident = _peak_resident(run)
    return PeakMemory(_peak_allocated(run) if record else None, resident)


def _peak_allocated(run: Callable[[], Any]) -> int:
    """Return the largest running sum of the CPU allocator's events, in order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([0, *(event.nbytes() for event in events)], dtype=np.int64).max())


def _peak_resident(run: Callable[[], Any]) -> int | None:
    """Return the peak growth of the process's resident memory, from /proc; None if the peak cannot be reset."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise freed blocks of the first call would be reused uncounted
        CLEAR_PEAK.write_text("5")  # sets VmHWM back to VmRSS
        before = _resident("VmHWM")
        run()
        return _resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * KIBIBYTE


# ---- growth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Growth of a cost with a size: cost = factor * size^exponent, and cost = constant + slope * size.

    Both fitted by least squares (the first on logarithms), each with a coefficient of determination.
    """

    exponent: float
    exponent_r2: float
    constant: float
    slope: float
    linear_r2: float


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """Fit both laws to at least three sizes.

    Raises:
        ValueError: fewer sizes, all above 0 and different.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    if len(set(sizes)) < 3 or len(x) != len(y) or min(*x, *y) <= 0:
        raise ValueError(f"a fit needs three different sizes and costs above 0, got {sizes} and {costs}")
    exponent, _, exponent_r2 = _line(np.log(x), np.log(y))
    slope, constant, linear_r2 = _line(x, y)
    return Growth(exponent, exponent_r2, constant, slope, linear_r2)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return slope, constant and coefficient of determination of the least-squares line."""
    slope, constant = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    residual = ((y - constant - slope * x) ** 2).sum()
    return float(slope), float(constant), float(1 - residual / spread) if spread else 1.0
