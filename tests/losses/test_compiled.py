"""Where compiled kernels are kept: a named folder that may be shared, read-only, full of rubbish or missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_codert.losses.compiled import cache_folder

RUN = """
import torch
from nemo_codert.losses.lattice import _numba_kernel, lattice_occupancies
lattice_occupancies(torch.zeros(1, 3, 2), torch.zeros(1, 3, 3), torch.tensor([3]), torch.tensor([2]))
print(sum(_numba_kernel.stats.cache_hits.values()), sum(_numba_kernel.stats.cache_misses.values()))
"""

READ_ONLY = """
from numba.core import caching
def refuse(*arguments):
    raise PermissionError(30, "Read-only file system")
caching.IndexDataCacheFile._open_for_write = refuse
"""


def start(folder: Path, code: str = RUN) -> subprocess.Popen:
    """A process that runs the kernel once, with `folder` as the place for compiled code."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def hits_and_misses(folder: Path, code: str = RUN) -> str:
    """What a process that runs the kernel once found there: `1 0` for compiled code, `0 1` for none."""
    process = start(folder, code)
    output = process.communicate()[0].strip()
    assert process.returncode == 0
    return output


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A folder which one process has filled."""
    folder = tmp_path_factory.mktemp("cache")
    assert hits_and_misses(folder) == "0 1"
    return folder


def test_a_second_process_compiles_nothing(filled):
    assert hits_and_misses(filled) == "1 0"
    assert {path.suffix for path in (filled / "nemo_codert").iterdir()} == {".nbi", ".nbc"}


def test_nothing_is_written_beside_the_sources(filled):
    sources = Path(sys.modules["nemo_codert.losses.compiled"].__file__).parent
    assert not [path for path in sources.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_a_folder_that_takes_no_files_is_read_all_the_same(filled, tmp_path):
    assert hits_and_misses(filled, READ_ONLY + RUN) == "1 0"
    assert hits_and_misses(tmp_path, READ_ONLY + RUN) == "0 1"  # compiled, not stored, and no error
    assert not list(tmp_path.rglob("*.nb*"))


def test_a_folder_that_cannot_be_made_costs_a_compilation_and_no_more(tmp_path):
    (tmp_path / "file").write_text("")
    assert hits_and_misses(tmp_path / "file") == "0 1"


def test_a_torn_file_counts_as_none(filled, tmp_path):
    folder = tmp_path / "nemo_codert"
    folder.mkdir()
    for path in (filled / "nemo_codert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: 40 if path.suffix == ".nbi" else 100])
    assert hits_and_misses(tmp_path) == "0 1"
    assert hits_and_misses(tmp_path) == "1 0"  # and was mended


def test_two_processes_may_fill_one_folder_at_the_same_time(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    assert [process.communicate()[0] is not None and process.returncode for process in processes] == [0, 0]
    assert hits_and_misses(tmp_path) == "1 0"


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
