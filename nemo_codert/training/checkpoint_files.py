"""Checkpoint files for Lightning: whole or not there at all, and read without executing anything in them.

    Trainer(plugins=[CheckpointFiles()])

`resume_if_exists`, `trainer.fit(ckpt_path=...)`, `trainer.validate(ckpt_path=...)` and NeMo's restoring of the best
checkpoint all go through the plugin.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from nemo_codert.files.checkpoints import plain, read_checkpoint, unreadable_names
from nemo_codert.files.disk_errors import write_error

UNFINISHED = ".part"  # ending of a file that is being written
LEFTOVER_SECONDS = 3600  # since anything was written to it: longer than any checkpoint takes


class CheckpointFiles(CheckpointIO):
    """Lightning's checkpoint IO with an atomic save and a weights-only load. Local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside its name and move it there when all of it is on the disk.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; earlier checkpoints are as they were.
            ValueError: something in the checkpoint could not be read again (`read_checkpoint`).
        """
        if storage_options is not None:
            raise ValueError(f"storage_options is {storage_options!r}: checkpoints are local files, leave it out")
        if "://" in str(path):
            raise ValueError(f"{path} is not a local file: checkpoints are written to a local folder, give one")
        path = Path(path)
        # Not `.ckpt`: nothing that looks for checkpoints finds it, should the process be killed here.
        temporary = path.with_name(f".{path.name[:100]}_{uuid.uuid4().hex[:8]}{UNFINISHED}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            with open(temporary, "xb") as file:
                torch.save(plain(checkpoint, configs=False), file)
                file.flush()
                os.fsync(file.fileno())
            if names := unreadable_names(temporary):
                raise ValueError(
                    f"{path} was not written: it would hold {', '.join(names)}, which a resume would refuse to "
                    "unpickle. The code that adds it should keep tensors, numbers, text and containers of them"
                )
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except (OSError, RuntimeError) as error:
            raise write_error(error, path, ", and resume: earlier checkpoints are untouched") from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint's contents as data, with any `weights_only`. Raises as `read_checkpoint`."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint where it is there."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote a checkpoint."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder last through a power failure, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
