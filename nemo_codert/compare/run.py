"""A comparison of strategies, from options to a report: what `codert compare` does, as a library."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from nemo_codert import __version__
from nemo_codert.compare.folds import find_folds
from nemo_codert.compare.plan import (
    BASELINE,
    SETTINGS_FILE,
    TEACHER,
    Cell,
    Settings,
    extended,
    make_settings,
    plan,
    read_settings,
)
from nemo_codert.compare.report import write_comparison_report
from nemo_codert.compare.results import (
    RUNS_FILE,
    Results,
    check_kept,
    is_finished,
    read_cells,
    read_result_files,
    restore_cells,
    write_results,
)
from nemo_codert.compare.runner import LOCK_FILE, Runner, locked
from nemo_codert.compare.strategies import is_twin

__all__ = ["Comparison", "Outcome", "compare", "report_again"]

STRATEGIES = ["student", "tandem_kd", "shared_kd"]
SEEDS = [0, 1, 2]
PACKAGES = ("nemo_toolkit", "torch")
TRAINER = [sys.executable, "-m", "nemo_codert.cli.train"]
CACHER = [sys.executable, "-m", "nemo_codert.cli.cache"]
INTERRUPTED = "interrupted: the same command resumes from here"


@dataclass(frozen=True)
class Comparison:
    """The options of a comparison; None stands for the settings in `output_dir`, or for the default.

    Attributes:
        output_dir: folder of the comparison, new or of the same settings.
        data_dir: a corpus as `codert prepare` leaves it, or a folder of such corpora, the folds.
        config_name: one of the shipped configs.
        strategies: names of conf/strategy (student, tandem_kd, shared_kd); NAME-twin is NAME without distillation,
            NAME@LABEL is NAME with the overrides given for NAME@LABEL, among which may be its training data.
        seeds: of the trainings, each 0 or more (0, 1, 2).
        folds: names of some of the corpora (all).
        max_steps: optimizer steps of every training (those of the config).
        overrides: Hydra's, for all strategies.
        strategy_overrides: Hydra's for one strategy, by its name; `{corpus}` in them is the folder of the fold.
        jobs: trainings at a time.
        threads: of each training.
        only: train these strategies of the comparison now.
        keep_models: False deletes the .nemo files of finished trainings but the teachers'.
        against: strategy that the tables compare with (student, else the first twin).
        own_seeds: the trainings of every fold have seeds of their own: with K folds, the fold's number plus K times
            the seed.
    """

    output_dir: Path
    data_dir: Path | None = None
    config_name: str = "fsdd"
    strategies: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    folds: Sequence[str] | None = None
    max_steps: int | None = None
    overrides: Sequence[str] = ()
    strategy_overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    jobs: int = 1
    threads: int = 1
    only: Sequence[str] | None = None
    keep_models: bool = True
    against: str | None = None
    own_seeds: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of `compare`.

    Attributes:
        folder: absolute path of the comparison's folder, with its report.
        tables: Markdown tables of all folds together, "" where no training is finished.
        failed: trainings that ended badly in this call.
        interrupted: whether Ctrl-C ended this call before its last training.
    """

    folder: Path
    tables: str
    failed: Sequence[Cell]
    interrupted: bool


def compare(wanted: Comparison, *, trainer: Sequence[str] = TRAINER, cacher: Sequence[str] = CACHER) -> Outcome:
    """Train what a comparison lacks and write its report.

    Trainings run in processes of their own. A folder with the same settings is continued: finished trainings are
    never repeated, and strategies, seeds and folds may be added. Progress is printed.

    Args:
        wanted: the comparison.
        trainer: command of a training, to which its Hydra arguments are appended.
        cacher: command that stores the targets of a cached teacher, to which its options are appended.

    Returns:
        The folder of the comparison, its tables, and the trainings that failed.

    Raises:
        ValueError: options out of range, data or a config that cannot be used, or a folder of other settings; nothing
            is written then.

    Example:
        >>> compare(Comparison("runs/comparison", data_dir="data/absent"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: --data-dir is data/absent: neither it nor a folder in it holds a train.json. ...
    """
    cells_of(settle(wanted), wanted)  # raises for every fault before anything is written
    folder = Path(wanted.output_dir).resolve()
    if (folder / "cells").is_dir():
        check_kept(folder)
    make_folder(folder)
    with locked(folder) as lock:
        settings = settle(wanted)  # another comparison may have ended here in between
        if restored := restore_cells(settings, folder):
            print(f"{restored} finished cells taken from {RUNS_FILE}, without their models", flush=True)
        check_kept(folder)
        finished = finished_seconds(read_cells(settings, folder))
        settings.write(folder)
        if settings.versions != (ours := versions()):
            print(f"warning: this comparison was begun with {settings.versions}, this is {ours}", file=sys.stderr)
        cells = cells_of(settings, wanted)
        missing = [cell for cell in cells if not is_finished(cell, folder)]
        print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished; {folder}", flush=True)
        runner = Runner(
            settings=settings,
            data_dir=Path(wanted.data_dir).resolve(),
            folder=folder,
            trainer=trainer,
            jobs=wanted.jobs,
            keep_models=wanted.keep_models,
            lock=lock,
            cacher=cacher,
            on_finish=lambda: write_results(settings, read_cells(settings, folder), folder),
        )
        interrupted = False
        try:
            runner.run(missing, finished)
        except KeyboardInterrupt:
            interrupted = True
            print(INTERRUPTED, file=sys.stderr)
        against = baseline(settings, wanted.against)
        tables = write_results_and_report(settings, read_cells(settings, folder), folder, against)
    return Outcome(folder, tables, runner.failed, interrupted)


def make_folder(folder: Path) -> None:
    """Make the folder of a comparison.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {folder} cannot be made: {error}") from error


def report_again(folder: Path, against: str | None = None) -> str:
    """Write the report of a comparison from its cells, or from its two result files where it has no cells.

    Args:
        folder: of the comparison. against: strategy that the tables compare with (student, else the first twin).

    Returns:
        Markdown tables of all folds together, "" where no training is finished.

    Raises:
        ValueError: not a comparison, or files that do not fit together.

    Example:
        >>> report_again("docs/absent")
        Traceback (most recent call last):
        ...
        ValueError: --output-dir is docs/absent: no comparison.json in there. Give the folder of a comparison
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if settings is None:
        raise ValueError(f"--output-dir is {folder}: no {SETTINGS_FILE} in there. Give the folder of a comparison")
    has_cells = (folder / "cells").is_dir()
    if has_cells:
        check_kept(folder)
    results = (read_cells if has_cells else read_result_files)(settings, folder)
    return write_results_and_report(settings, results, folder, baseline(settings, against))


def settle(wanted: Comparison) -> Settings:
    """Return the settings of a comparison: those wanted, or those of its folder extended by them.

    Raises:
        ValueError: options out of range, data or configs that cannot be used, a folder that holds something else.
    """
    for name in ("jobs", "threads", "max_steps"):
        value = getattr(wanted, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted 1 or more")
    if wanted.data_dir is None:
        raise ValueError("--data-dir is missing: give a corpus, or a folder of corpora")
    folder = Path(wanted.output_dir)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output-dir is {folder}: {path} is a file, give a folder")
    stored = read_settings(folder)
    if stored is None and folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise ValueError(f"--output-dir {folder} holds something else than a comparison: give a new folder")
    folds = wanted.folds or (list(stored.folds) if stored else None)
    made = make_settings(
        config_name=wanted.config_name,
        overrides=wanted.overrides,
        strategy_overrides=wanted.strategy_overrides,
        max_steps=wanted.max_steps,
        threads=wanted.threads,
        strategies=wanted.strategies or (stored.strategies if stored else STRATEGIES),
        seeds=wanted.seeds or (stored.seeds if stored else SEEDS),
        folds=find_folds(Path(wanted.data_dir), folds),
        versions=versions(),
        own_seeds=wanted.own_seeds,
    )
    settings = extended(stored, made, folder) if stored else made
    baseline(settings, wanted.against)
    return settings


def versions() -> dict[str, str]:
    """Return the versions of the packages that a training's result depends on."""
    return {**{package: version(package) for package in PACKAGES}, "nemo_codert": __version__}


def baseline(settings: Settings, against: str | None) -> str:
    """Return the strategy that the tables compare with: `against`, the lone student, a twin, or the first there is.

    Raises:
        ValueError: the comparison does not have `against`, or `against` has no student.
    """
    if against is None:
        students = [strategy for strategy in settings.strategies if strategy != TEACHER]
        twins = list(filter(is_twin, students))
        return BASELINE if BASELINE in students else [*twins, *students, TEACHER][0]
    if against not in settings.strategies:
        raise ValueError(f"--against is {against}, the comparison has {', '.join(settings.strategies)}")
    if against == TEACHER:
        raise ValueError(f"--against is {against}, which has no student to compare with. Give another strategy")
    return against


def cells_of(settings: Settings, wanted: Comparison) -> list[Cell]:
    """Return the cells that a call is to train where they are not finished."""
    return plan(settings, wanted.only, wanted.seeds, wanted.folds)


def finished_seconds(results: Results) -> dict[str, list[float]]:
    """Return the wall times of finished cells by strategy."""
    found: dict[str, list[float]] = {}
    for run in results.runs:
        found.setdefault(run.cell.strategy, []).append(run.wall_seconds)
    return found


def write_results_and_report(settings: Settings, results: Results, folder: Path, against: str) -> str:
    """Write results.csv, predictions.jsonl.gz, table.md, plots and report.html; returns the tables, or ""."""
    if not results.runs:
        return ""
    write_results(settings, results, folder)
    return write_comparison_report(settings, results, folder, against)


def seed_numbers(texts: Sequence[str]) -> list[int]:
    """Return the seeds that texts name: `["0-2", "7"]` -> [0, 1, 2, 7].

    Raises:
        ValueError: a text that is neither a number nor a range of numbers.
    """
    seeds: set[int] = set()
    for text in texts:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"--seeds has {text!r}, wanted numbers and ranges such as 0-4")
        seeds |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return sorted(seeds)
