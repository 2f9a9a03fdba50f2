"""Checkpoint files for Lightning: written whole or not at all, and read without executing anything in them.

    Trainer(plugins=[CheckpointFiles()])

`resume_if_exists`, `trainer.fit(ckpt_path=...)`, `trainer.validate(ckpt_path=...)` and NeMo's restoring of the best
checkpoint all go through the plugin.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from nemo_codert.files.atomic import UNFINISHED, whole_file
from nemo_codert.files.checkpoints import plain, read_checkpoint, unreadable_names
from nemo_codert.files.disk_errors import write_error

LEFTOVER_SECONDS = 3600  # since anything was written to it: longer than any checkpoint takes


class CheckpointFiles(CheckpointIO):
    """Lightning's checkpoint IO with an atomic save and a weights-only load. Local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint under a temporary name and rename the file when all of it is on the disk.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; earlier checkpoints stay unchanged.
            ValueError: something in the checkpoint could not be read again (`read_checkpoint`).
        """
        if storage_options is not None:
            raise ValueError(f"storage_options is {storage_options!r}: checkpoints are local files, leave it out")
        if "://" in str(path):
            raise ValueError(f"{path} is not a local file: checkpoints are written to a local folder, give one")
        path = Path(path)
        try:
            with whole_file(path, durable=True) as temporary:
                _remove_leftovers(path.parent)
                with open(temporary, "xb") as file:
                    torch.save(plain(checkpoint, configs=False), file)
                if names := unreadable_names(temporary):
                    raise ValueError(
                        f"{path} was not written: it would hold {', '.join(names)}, which a resume would refuse to "
                        "unpickle. Save tensors, numbers, text and containers of them only"
                    )
        except (OSError, RuntimeError) as error:
            # A full disk is already one error about this file, without the remedy: its cause is the error to report.
            raise write_error(
                error.__cause__ or error, path, ", and resume: earlier checkpoints are untouched"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint's contents as data, whatever the value of `weights_only`. Raises as `read_checkpoint`."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint if it exists."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of processes that were killed while saving."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
