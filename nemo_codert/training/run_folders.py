"""The folders of the runs of one name: which are unfinished, at what step, and which is the newest.

A run's folder is `exp_dir/name/DATE`, or `exp_dir/name` itself for `exp_manager.resume_if_exists=true` without a
version. It is finished when `config.yaml` is there, the last file that a run writes; it can be continued when it has a
whole checkpoint. Imports neither torch nor NeMo: a command refuses a second run before it imports them.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config.values import value_at
from nemo_codert.files.checkpoint_step import checkpoint_step

CHECKPOINTS, FINISHED, LATEST = "checkpoints", "config.yaml", "latest"
UNFINISHED = ("refuse", "continue", "new")  # values of resume.unfinished: what becomes of an unfinished run
# Keys of exp_manager by which a config states the place of its own run.
PLACES = ("version", "explicit_log_dir", "checkpoint_callback_params.dirpath")


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that was stopped, or still trains.

    Attributes:
        folder: of the run.
        version: its name below `exp_dir/name`, None for that folder itself.
        step: optimizer step of its last checkpoint.
    """

    folder: Path
    version: str | None
    step: int


def runs_folder(cfg: DictConfig) -> Path | None:
    """Return `exp_dir/name`, the folder of all runs of that name; None without an exp_dir."""
    exp_dir, name = (value_at(cfg, f"exp_manager.{key}") for key in ("exp_dir", "name"))
    return Path(str(exp_dir)) / ("default" if name in (None, "") else str(name)) if exp_dir else None  # 0 is a name


def unfinished_runs(cfg: DictConfig) -> list[UnfinishedRun]:
    """Return the unfinished runs of the name that a root config gives its own, the newest first.

    Args:
        cfg: root config; `exp_manager.exp_dir` and `exp_manager.name` are read.

    Example:
        >>> unfinished_runs(OmegaConf.create({"exp_manager": {"exp_dir": "absent", "name": "pair"}}))
        []
    """
    found = []
    for version, folder in _folders(cfg).items():
        if not (folder / FINISHED).is_file() and (last := last_checkpoint(folder)):
            found.append((last[0].stat().st_mtime, UnfinishedRun(folder, version, last[1])))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _folders(cfg: DictConfig) -> dict[str | None, Path]:
    """Return version -> folder of all runs of the name."""
    runs = runs_folder(cfg)
    if runs is None or not runs.is_dir():
        return {}
    versions = [path for path in sorted(runs.iterdir()) if not path.is_symlink()]
    folders = {None: runs, **{path.name: path for path in versions}}
    return {version: folder for version, folder in folders.items() if (folder / CHECKPOINTS).is_dir()}


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Return the whole checkpoint of the highest step in a run's folder with that step; None where there is none."""
    paths = [path for path in (folder / CHECKPOINTS).rglob("*.ckpt") if path.is_file()]
    steps = [(path, step) for path in paths if (step := checkpoint_step(path)) is not None]
    return max(steps, key=lambda pair: (pair[1], pair[0].stat().st_mtime), default=None)


def unfinished_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield why a run must not start beside those of its name, or why none of them can be continued.

    Args:
        cfg: root config; `resume.unfinished` states what is to be done with an unfinished run.

    Returns:
        One message a fault, with the folder, its step and the remedies.
    """
    how = value_at(cfg, "resume.unfinished", "refuse")
    if how not in UNFINISHED:
        yield f"resume.unfinished is {how!r}, wanted one of {', '.join(UNFINISHED)}"
        return
    if any(value_at(cfg, f"exp_manager.{key}") for key in PLACES[1:]):
        return
    version, resumes = value_at(cfg, "exp_manager.version"), value_at(cfg, "exp_manager.resume_if_exists")
    unfinished, folders = unfinished_runs(cfg), _folders(cfg)
    if how == "continue":
        is_finished = any((folder / FINISHED).is_file() for folder in folders.values())
        if is_finished and not (unfinished or version or resumes):
            yield (
                f"every run in {runs_folder(cfg)} is finished, there is none to continue. Leave out --resume to start "
                "another, or add exp_manager.version=FOLDER to train one of them longer"
            )
    elif version and not resumes:
        remedy = "another exp_manager.version"
        yield from [_refusal(run, remedy) for run in unfinished if run.version == str(version)]
    elif how == "refuse" and not version and not (resumes and None in folders):
        yield from [_refusal(run, "--new") for run in unfinished[:1]]


def _refusal(run: UnfinishedRun, remedy: str) -> str:
    return (
        f"{run.folder} is an unfinished run of the same name, at step {run.step}: --resume continues it, {remedy} "
        "starts a second run beside it (in a config: resume.unfinished=continue, or new)"
    )


def continue_run(cfg: DictConfig) -> DictConfig:
    """Return a root config whose `exp_manager` resumes the run that `resume.unfinished` chooses.

    Args:
        cfg: root config that `unfinished_problems` finds no fault in. It is not changed.

    Returns:
        The config itself where nothing is to be continued.
    """
    if value_at(cfg, "resume.unfinished") != "continue":
        return cfg
    manager = {"resume_if_exists": True}
    if not any(value_at(cfg, f"exp_manager.{key}") for key in (*PLACES, "resume_if_exists")):
        runs = unfinished_runs(cfg)
        manager = {**manager, "version": runs[0].version} if runs else {}
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.exp_manager = OmegaConf.merge(cfg.exp_manager, manager)
    return cfg


def continuing_command(program: str, arguments: Sequence[str], cfg: DictConfig, folder: Path) -> tuple[int, str]:
    """Return the step from which an interrupted run can be continued, and the command that does it.

    Args:
        program: the command without its arguments.
        arguments: those that the run was started with.
        cfg: root config that they make.
        folder: of the run.

    Returns:
        The step of the last checkpoint, 0 without any; the same command then starts again.
    """
    last = last_checkpoint(folder)
    if last is None or value_at(cfg, "exp_manager.resume_if_exists"):
        return last[1] if last else 0, f"{program} {shlex.join(arguments)}"
    words = [word for word in arguments if word not in ("--resume", "--new")]
    if not any(value_at(cfg, f"exp_manager.{key}") for key in PLACES):
        newest = unfinished_runs(cfg)[:1]
        is_found = newest and newest[0].folder.absolute() == folder.absolute()
        words += [] if is_found else [f"exp_manager.version={folder.name}"]
    return last[1], f"{program} {shlex.join([*words, '--resume'])}"


def link_latest(folder: Path) -> None:
    """Make `exp_dir/latest` a link to a run's folder; nothing is done where a link cannot be made.

    The link lies beside the names, so that `exp_dir/name/*` are the folders of that name's runs and nothing else.

    Args:
        folder: of a run, `exp_dir/name/DATE`.
    """
    place = folder.parent.parent
    link, made = place / LATEST, place / f".{LATEST}_{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return  # a folder of the user's
    try:
        made.symlink_to(Path(folder.parent.name, folder.name), target_is_directory=True)
        made.replace(link)
    except OSError:  # the file system has no links
        made.unlink(missing_ok=True)


def unlink_latest(folder: Path) -> None:
    """Let `exp_dir/latest` name the newest folder that remains, where it named one that is gone."""
    link = folder.parent.parent / LATEST
    if not link.is_symlink() or link.exists():
        return
    link.unlink()
    remaining = [path for path in link.parent.glob("*/*") if (path / CHECKPOINTS).is_dir()]
    if remaining:
        link_latest(max(remaining, key=lambda path: path.stat().st_mtime))
