"""Where compiled kernels are kept: a named folder that may be shared, read-only, full of rubbish or missing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nemo_codert.losses.cpu.compile_cache import cache_folder, compiled
from nemo_codert.losses.cpu.lattice_kernels import target_kernel
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

# A process of one second: importing the package would import torch too.
LOAD = """
import importlib.util, sys
import numpy as np
for name in ("compile_cache", "lattice_kernels"):
    module, path = f"nemo_codert.losses.cpu.{name}", f"nemo_codert/losses/cpu/{name}.py"
    spec = importlib.util.spec_from_file_location(module, path)
    kernels = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
"""
COUNT = "print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))"
LARGE = f"""{LOAD}
kernel = kernels.lattice_kernel
steps = [np.zeros((1, 3, 2)), np.zeros((1, 3, 3)), np.ones((1, 3, 2)), np.ones((1, 3, 3))]
kernel(*steps, np.array([3]), np.array([2]), losses := np.zeros(1))
assert abs(losses[0] + np.log(6)) < 1e-12, losses
{COUNT}
"""
SMALL = f"""{LOAD}
kernel = kernels.target_kernel
assert kernel(0, 4, np.ones((1, 2), np.int64), np.array([2]), np.zeros((1, 2), np.int64)) == 0
{COUNT}
"""


def start(folder: Path, code: str) -> subprocess.Popen:
    """A process that runs a kernel once, with `folder` as the place for compiled code."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def found_by_processes(*processes: subprocess.Popen) -> list[str]:
    """What each found: `1 0` for compiled code, `0 1` for none."""
    outputs = [process.communicate()[0].strip() for process in processes]
    assert not any(process.returncode for process in processes)
    return outputs


@pytest.fixture
def hits_and_misses(monkeypatch) -> Callable[[Path], str]:
    """What the smallest kernel, made anew as at an import, finds in a folder: `1 0` for compiled code, `0 1` for none.

    In this process: numba remembers nothing of a kernel's code beyond the kernel.
    """

    def call(folder: Path) -> str:
        monkeypatch.setattr("numba.config.CACHE_DIR", str(folder))
        kernel = compiled(target_kernel.py_func)
        given = np.zeros((1, 2), np.int64)
        assert kernel(0, 4, np.array([[3, 4]]), np.array([2]), given) == 1 and given.tolist() == [[3, 4]]
        return f"{sum(kernel.stats.cache_hits.values())} {sum(kernel.stats.cache_misses.values())}"

    return call


@pytest.fixture
def refusing(monkeypatch) -> None:
    """No folder takes files."""

    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._open_for_write", refuse)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A folder which one process has filled with the smallest kernel."""
    folder = tmp_path_factory.mktemp("cache")
    assert found_by_processes(start(folder, SMALL)) == ["0 1"]
    return folder


def test_a_second_process_compiles_nothing(tmp_path):
    assert found_by_processes(start(tmp_path, LARGE)) == ["0 1"]
    assert found_by_processes(start(tmp_path, LARGE)) == ["1 0"]
    assert {path.suffix for path in (tmp_path / "nemo_codert").iterdir()} == {".nbi", ".nbc"}


def test_nothing_is_written_beside_the_sources(filled):
    assert len(list(filled.rglob("*.nb*"))) == 2
    sources = Path(sys.modules["nemo_codert.losses.cpu.compile_cache"].__file__).parent
    assert not [path for path in sources.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_a_folder_that_takes_no_files_is_read_all_the_same(filled, tmp_path, hits_and_misses, refusing):
    assert hits_and_misses(filled) == "1 0"  # what another process has compiled
    assert hits_and_misses(tmp_path) == "0 1"  # compiled, not stored, and no error
    assert not list(tmp_path.rglob("*.nb*"))


def test_a_folder_that_cannot_be_made_costs_a_compilation_and_no_more(tmp_path, hits_and_misses):
    (tmp_path / "file").write_text("")
    assert hits_and_misses(tmp_path / "file") == "0 1"


def test_a_torn_file_counts_as_none(filled, tmp_path, hits_and_misses):
    folder = tmp_path / "nemo_codert"
    folder.mkdir()
    for path in (filled / "nemo_codert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: 40 if path.suffix == ".nbi" else 100])
    assert hits_and_misses(tmp_path) == "0 1"
    assert hits_and_misses(tmp_path) == "1 0"  # and was mended


def test_two_processes_may_fill_one_folder_at_the_same_time(tmp_path):
    assert set(found_by_processes(start(tmp_path, SMALL), start(tmp_path, SMALL))) <= {"0 1", "1 0"}
    assert found_by_processes(start(tmp_path, SMALL)) == ["1 0"]


@pytest.mark.parametrize("variable, value, expected", [
    ("XDG_CACHE_HOME", "/somewhere", "/somewhere/nemo_codert"),
    ("HOME", "/elsewhere", "/elsewhere/.cache/nemo_codert"),
])  # fmt: skip
def test_the_folder_has_a_name_users_can_find(monkeypatch, variable, value, expected):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    assert str(cache_folder()) == expected


def test_a_user_without_a_home_gets_a_temporary_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder().name == "nemo_codert" and cache_folder().is_absolute()
