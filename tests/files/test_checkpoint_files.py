"""Checkpoints, models and predictions are on the disk as a whole or not at all, whatever the disk does."""

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch

from nemo_codert.export.stock_file import moved_when_complete
from nemo_codert.training.checkpoint_files import CheckpointFiles

MEGABYTE = torch.zeros(2**18)  # float32


@pytest.fixture
def limited():
    """No file may grow beyond a number of bytes: what a full disk does, for every file of this process."""

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python's default: an OSError in place of a signal
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    content = {"state_dict": {"w": MEGABYTE}, "global_step": 3, "loops": {"a": [1, (2.5, "x", None)]}}
    path = tmp_path / "new folder" / "a.ckpt"
    CheckpointFiles().save_checkpoint(content, path)
    loaded = CheckpointFiles().load_checkpoint(path)
    assert torch.equal(loaded.pop("state_dict")["w"], MEGABYTE) and loaded == {
        "global_step": 3,
        "loops": content["loops"],
    }
    assert files(path.parent) == ["a.ckpt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # readable by whom others are
    CheckpointFiles().remove_checkpoint(path)
    CheckpointFiles().remove_checkpoint(path)
    assert files(path.parent) == []


def test_a_full_disk_ends_a_save_with_one_error_and_leaves_earlier_checkpoints(tmp_path, limited):
    io, first = CheckpointFiles(), tmp_path / "first.ckpt"
    io.save_checkpoint({"w": MEGABYTE}, first)
    before = first.read_bytes()
    for size in (0, 100, 4096, 2**19, 2**20):  # while the header, the tensors and the end are written
        limited(size)
        for path in (tmp_path / "second.ckpt", first):
            with pytest.raises(
                OSError, match=rf"{path.name} could not be written: File too large. Free some"
            ) as error:
                io.save_checkpoint({"w": MEGABYTE}, path)
            assert error.value.errno == errno.EFBIG and "\n" not in str(error.value)
    limited(resource.RLIM_INFINITY)
    assert files(tmp_path) == ["first.ckpt"] and first.read_bytes() == before
    assert torch.equal(io.load_checkpoint(first)["w"], MEGABYTE)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "checkpoints", Path("/proc/checkpoints")):
        with pytest.raises(OSError, match=r"a\.ckpt could not be written: .+ Give a folder that can be written to"):
            CheckpointFiles().save_checkpoint({"w": MEGABYTE}, folder / "a.ckpt")
    assert files(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_by_a_later_save_but_no_file_that_is_being_written(tmp_path):
    old, new = tmp_path / ".a.ckpt_0.part", tmp_path / ".b.ckpt_1.part"
    old.touch(), new.touch()
    os.utime(old, (0, 0))
    CheckpointFiles().save_checkpoint({}, tmp_path / "next.ckpt")
    assert files(tmp_path) == [new.name, "next.ckpt"]


def test_remote_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="storage_options is 'x'"):
        CheckpointFiles().save_checkpoint({}, tmp_path / "a.ckpt", "x")
    with pytest.raises(ValueError, match="s3://bucket/a.ckpt is not a local file"):
        CheckpointFiles().save_checkpoint({}, "s3://bucket/a.ckpt")


def test_a_full_disk_is_one_error_that_names_the_folder_of_several_files(tmp_path, limited):
    folder = tmp_path / "sherpa"
    limited(100)
    with pytest.raises(OSError, match=r"sherpa could not be written: File too large\. Free some space"):
        with moved_when_complete(folder) as scratch:
            (scratch / "tokens.txt").write_bytes(bytes(10))
            (scratch / "encoder.onnx").write_bytes(bytes(1000))
    limited(resource.RLIM_INFINITY)  # else pytest could not write its own output where that is a file
    assert files(folder) == []
