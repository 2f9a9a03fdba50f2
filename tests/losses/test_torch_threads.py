"""Compiled kernels on torch's threads: all shares are done once, by however many threads there are."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch

from nemo_codert.losses.cpu import openmp as torch_threads
from nemo_codert.losses.cpu.openmp import on_torch_threads, threads_for
from tests.conftest import REPOSITORY
from tests.losses.test_additive_rnnt import loss_and_gradients, random_batch

pytestmark = pytest.mark.unit

LOSS = """
import sys
import torch
from tests.losses.test_torch_threads import loss_and_gradients, random_batch, torch_threads
torch.save(loss_and_gradients(random_batch(4, 9, 5, 7)), sys.argv[1])
"""
NO_OPENMP = f"""
import ctypes, numba, pytest, torch

def refuse(name):
    raise OSError(name)

library, ctypes.CDLL = ctypes.CDLL, refuse
from nemo_codert.losses.cpu import openmp as torch_threads
assert torch_threads._openmp() is None
ctypes.CDLL = library
{LOSS}
"""


@numba.njit
def note(thread: int, threads: int, done: np.ndarray, by: np.ndarray) -> None:
    for share in range(thread, len(done), threads):
        done[share] += 1
        by[share] = thread


@numba.njit
def fail_late(thread: int, threads: int, done: np.ndarray) -> None:
    if thread == threads - 1:
        raise ValueError
    done[thread] = 1


@numba.njit
def run(threads: int, body, *arguments) -> None:  # noqa: ANN001, ANN002
    on_torch_threads(body, arguments, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_share_is_done_once(threads):
    done, by = np.zeros(5, np.int64), np.full(5, -1)
    run(threads, note, done, by)
    assert done.tolist() == [1] * 5
    assert by.tolist() == [share % threads for share in range(5)]


def test_what_fails_on_any_thread_is_raised_as_want_of_memory():
    done = np.zeros(2, np.int64)
    with pytest.raises(MemoryError, match="for want of memory"):
        run(2, fail_late, done)
    assert done.tolist() == [1, 0]


def test_what_fails_on_one_thread_is_raised_as_it_is():
    with pytest.raises(ValueError):
        run(1, fail_late, np.zeros(2, np.int64))


def test_threads_are_torchs_and_no_more_than_there_is_work(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [threads_for(shares) for shares in (1, 3, 4, 9)] == [1, 3, 4, 4]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(monkeypatch, threads):
    batch = random_batch(4, 9, 5, 7)
    expected = loss_and_gradients(batch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # those of the kernels alone
    for result, wanted in zip(loss_and_gradients(batch), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0)


def test_torch_has_an_openmp_here():
    assert torch_threads._openmp() is not None  # else all the above ran on one thread


@pytest.mark.parametrize("code, variables", [
    (LOSS, {"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "2"}),  # fewer threads than asked for
    (LOSS, {"OMP_NUM_THREADS": "1"}),
    (NO_OPENMP, {}),
])  # fmt: skip
def test_another_process_with_other_threads_gets_the_same(tmp_path, code, variables):
    command, environment = [sys.executable, "-c", code, str(tmp_path / "found.pt")], {**os.environ, **variables}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    for result, wanted in zip(
        torch.load(tmp_path / "found.pt"), loss_and_gradients(random_batch(4, 9, 5, 7)), strict=True
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-7)


def test_calls_from_several_threads_do_not_meet():
    batches = [random_batch(3, 30, 8, 40, seed=seed) for seed in range(12)]
    expected = [loss_and_gradients(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for results, wanted in zip(pool.map(loss_and_gradients, batches * 5), expected * 5, strict=True):
            torch.testing.assert_close(results, wanted, rtol=0, atol=0)


def test_the_stand_in_for_openmp_calls_once():
    fork, thread, threads = torch_threads._on_this_thread()
    given = []
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(given.append)
    fork(ctypes.cast(task, ctypes.c_void_p), 7, 2, 0)
    assert given == [7] and (thread(), threads()) == (0, 1)
