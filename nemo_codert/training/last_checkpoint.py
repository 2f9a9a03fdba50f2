"""The checkpoint that a run resumes from: one whole `-last.ckpt`, with any leftovers of a killed run beside it.

exp_manager refuses to resume where it finds two, or one that was being written. Nothing is deleted here: what cannot
be used gets another name.
"""

import logging
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nemo_codert.nemo_compat import unfinished_marker

logger = logging.getLogger(__name__)

LAST = re.compile(r"-last(-v\d+)?\.ckpt$")
SET_ASIDE = ".set_aside"
WAIT_SECONDS = 600.0


class _Found(NamedTuple):
    path: Path
    step: int | None  # None: torn
    is_last: bool


def prepare_resume(folder: Path, load: Callable[[Path], dict[str, Any]], *, is_writer: bool) -> Path | None:
    """Leave exactly one whole `-last.ckpt` in a folder of checkpoints, the newest.

    Where the newest is a best checkpoint, it is copied to be the last. Other processes wait until this is so.

    Args:
        folder: of the run's checkpoints; need not exist.
        load: reads a checkpoint file.
        is_writer: rank 0, which alone changes anything.

    Returns:
        The checkpoint to resume from; None: there is none, the run starts from scratch.

    Raises:
        ValueError: a whole file that cannot be loaded, or rank 0 was not done in ten minutes.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = _survey(folder, load)
        chosen = max((one for one in found if one.step is not None), key=_rank, default=None)
        others = [one for one in found if one is not chosen and (one.step is None or one.is_last)]
        marked = [one.path for one in found if unfinished_marker(one.path).exists()]
        if not others and not marked and (chosen is None or chosen.path.name.endswith("-last.ckpt")):
            return chosen.path if chosen else None
        if is_writer:
            _tidy(chosen, others, marked)
        elif time.monotonic() > deadline:
            raise ValueError(f"{folder} has no checkpoint to resume from, rank 0 was to choose one. Is it running?")
        else:
            time.sleep(0.5)


def _rank(found: _Found) -> tuple[int, bool, float]:
    return found.step, found.is_last, found.path.stat().st_mtime


def _survey(folder: Path, load: Callable[[Path], dict[str, Any]]) -> list[_Found]:
    """Read the checkpoints of a folder."""
    paths = [path for path in sorted(folder.rglob("*.ckpt")) if path.is_file()] if folder.is_dir() else []
    return [_Found(path, _step_of(path, load), bool(LAST.search(path.name))) for path in paths if path.exists()]


def _step_of(path: Path, load: Callable[[Path], dict[str, Any]]) -> int | None:
    """Return the optimizer step of a checkpoint; None where the file is torn."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
    except (zipfile.BadZipFile, EOFError, OSError):  # OSError: also a file that rank 0 has just renamed
        return None
    try:
        return int(load(path)["global_step"])
    except Exception as error:  # of many kinds; a whole file that is refused was not torn by the last run
        raise ValueError(
            f"{path} is whole but cannot be loaded: {error}. Move it away to start from scratch, or find what wrote it"
        ) from error


def _tidy(chosen: _Found | None, others: list[_Found], marked: list[Path]) -> None:
    for other in others:
        _set_aside(other.path, "it is torn" if other.step is None else f"{chosen.path.name} is newer")
    for path in marked:
        unfinished_marker(path).unlink(missing_ok=True)  # whole: written at once, or about to be removed
    if chosen is None:
        return
    if not chosen.is_last:
        shutil.copyfile(chosen.path, chosen.path.with_name(f"{chosen.path.stem}-last.ckpt"))
    elif not chosen.path.name.endswith("-last.ckpt"):
        chosen.path.rename(chosen.path.with_name(LAST.sub("-last.ckpt", chosen.path.name)))


def _set_aside(path: Path, reason: str) -> None:
    target, number = path.with_name(path.name + SET_ASIDE), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{SET_ASIDE}_{number}")
    path.rename(target)
    logger.warning("%s is not resumed from, %s: now %s", path, reason, target.name)
