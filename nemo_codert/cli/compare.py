"""Train several strategies over seeds and folds alike, and say which student is better, with intervals.

    python scripts/compare_strategies.py --config-name fsdd --data-dir data/fsdd --output-dir runs/comparison \\
        --strategies student tandem_kd shared_kd --seeds 0-4 --jobs 2 -- model.optim.lr=5e-4

--data-dir is a corpus as scripts/prepare_data.py leaves it (train.json, dev.json, test*.json, tokenizer/), or a folder
of such corpora, the folds. Every fold, strategy and seed is one cell: a run of scripts/train.py with the same updates,
data order and student at the start for all strategies of a seed. A static strategy brings `teacher` with it and takes
the teacher of its own fold and seed. Hydra overrides after `--` are for all strategies, --override STRATEGY:KEY=VALUE
is for one.

The output folder: results.csv (one row a run), predictions.jsonl.gz, table.md, plots, report.html, and cells/ with
command, log and .nemo files of every run. The same command again goes on where it stopped: finished cells are never
trained again, failed and interrupted ones are. Strategies, seeds and folds may be added; a folder made with other
settings is refused. --only trains some strategies of the comparison now, --seeds and --folds some of its seeds and
folds. A folder that was handed on, with nothing but comparison.json, results.csv and predictions.jsonl.gz, is enough
to go on from, without the models of its cells, and for --report-only, which writes table, plots and report anew.

Exit status 1: a training failed; 2: bad options, files or data; 130: interrupted.
"""

import argparse
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

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
from nemo_codert.compare.report import write_report
from nemo_codert.compare.results import (
    RUNS_FILE,
    Results,
    check_kept,
    is_finished,
    read_cells,
    read_results,
    restore_cells,
    write_results,
)
from nemo_codert.compare.runner import LOCK_FILE, Runner, locked

TRAINER = [sys.executable, str(Path(__file__).resolve().parent / "train.py")]
STRATEGIES = ["student", "tandem_kd", "shared_kd"]
PACKAGES = ("nemo_toolkit", "torch", "nemo_codert")
INTERRUPTED = "interrupted: the same command goes on from here"
# Without effect where nothing is trained.
TRAINING_OPTIONS = ("data_dir", "strategies", "seeds", "folds", "max_steps", "override", "only", "overrides")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="a corpus or a folder of corpora")
    parser.add_argument("--config-name", default="fsdd", metavar="NAME", help="in conf/ (fsdd)")
    parser.add_argument("--strategies", nargs="+", metavar="S", help=f"({' '.join(STRATEGIES)})")
    parser.add_argument("--seeds", nargs="+", metavar="N", help="numbers and ranges: 0-4 7 (0-2)")
    parser.add_argument("--folds", nargs="+", metavar="NAME", help="of the folds in --data-dir (all)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="updates of every run (the config's)")
    parser.add_argument("--override", action="append", default=[], metavar="STRATEGY:KEY=VALUE", help="repeatable")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each training (1)")
    parser.add_argument("--only", nargs="+", metavar="S", help="train these strategies of the comparison now")
    parser.add_argument("--drop-models", action="store_true", help="keep no .nemo files but the teachers'")
    parser.add_argument("--against", metavar="S", help=f"what the tables compare with ({BASELINE})")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the report anew")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="Hydra overrides for all strategies")
    return parser.parse_args(arguments)


def seed_numbers(texts: Sequence[str]) -> list[int]:
    """`["0-2", "7"]` -> [0, 1, 2, 7].

    Raises:
        ValueError: something else than numbers and ranges of them.
    """
    seeds: set[int] = set()
    for text in texts:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"--seeds has {text!r}, wanted numbers and ranges such as 0-4")
        seeds |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return sorted(seeds)


def strategy_overrides(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["tandem_kd:a.b=1"]` -> {"tandem_kd": ["a.b=1"]}.

    Raises:
        ValueError: no strategy or no value.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        strategy, colon, override = text.partition(":")
        if not colon or "=" not in override:
            raise ValueError(f"--override is {text!r}, wanted STRATEGY:KEY=VALUE")
        found.setdefault(strategy, []).append(override)
    return found


def settle(options: argparse.Namespace) -> Settings:
    """The comparison that the options describe, or the one of the folder, extended by them.

    Raises:
        ValueError: options out of range, data or configs that cannot be used, a folder that holds something else.
    """
    for name in ("jobs", "threads", "max_steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted 1 or more")
    if options.data_dir is None:
        raise ValueError("--data-dir is missing: give a corpus, or a folder of corpora")
    folder: Path = options.output_dir
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output-dir is {folder}: {path} is a file, give a folder")
    stored = read_settings(folder)
    if stored is None and folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise ValueError(f"--output-dir {folder} holds something else than a comparison: give a new folder")
    wanted = make_settings(
        config_name=options.config_name,
        overrides=options.overrides,
        strategy_overrides=strategy_overrides(options.override),
        max_steps=options.max_steps,
        threads=options.threads,
        strategies=options.strategies or (stored.strategies if stored else STRATEGIES),
        seeds=seed_numbers(options.seeds) if options.seeds else (stored.seeds if stored else [0, 1, 2]),
        folds=find_folds(options.data_dir, options.folds or (list(stored.folds) if stored else None)),
        versions=versions(),
    )
    settings = extended(stored, wanted, folder) if stored else wanted
    baseline(settings, options.against)
    return settings


def versions() -> dict[str, str]:
    """Of the packages that a training's result depends on."""
    return {package: version(package) for package in PACKAGES}


def baseline(settings: Settings, against: str | None) -> str:
    """The strategy that the tables compare with: the one asked for, the lone student, or the first there is.

    Raises:
        ValueError: the comparison does not have the one asked for, or it has no student.
    """
    if against is None:
        students = [strategy for strategy in settings.strategies if strategy != TEACHER]
        return BASELINE if BASELINE in students else [*students, TEACHER][0]
    if against not in settings.strategies:
        raise ValueError(f"--against is {against}, the comparison has {', '.join(settings.strategies)}")
    if against == TEACHER:
        raise ValueError(f"--against is {against}, which has no student to compare with. Give another strategy")
    return against


def cells_of(settings: Settings, options: argparse.Namespace) -> list[Cell]:
    """The cells that this call is to train where they are not finished."""
    return plan(settings, options.only, seed_numbers(options.seeds) if options.seeds else None, options.folds)


def compare(options: argparse.Namespace) -> int:
    """Train what is missing and write the report; returns the exit status.

    Raises:
        ValueError: see `settle`, `plan`, `check_kept`, `read_cells` and `locked`.
    """
    cells_of(settle(options), options)  # every fault is told before anything is written
    folder: Path = options.output_dir.resolve()
    if (folder / "cells").is_dir():
        check_kept(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {folder} cannot be made: {error}") from error
    with locked(folder) as lock:
        settings = settle(options)  # another comparison may have ended here in between
        if restored := restore_cells(settings, folder):
            print(f"{restored} finished cells taken from {RUNS_FILE}, without their models", flush=True)
        check_kept(folder)
        finished = finished_seconds(read_cells(settings, folder))
        settings.write(folder)
        if settings.versions != versions():
            print(
                f"warning: this comparison was begun with {settings.versions}, this is {versions()}", file=sys.stderr
            )
        cells = cells_of(settings, options)
        missing = [cell for cell in cells if not is_finished(cell, folder)]
        print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished; {folder}", flush=True)
        runner = Runner(
            settings=settings,
            data_dir=options.data_dir.resolve(),
            folder=folder,
            trainer=TRAINER,
            jobs=options.jobs,
            keep_models=not options.drop_models,
            lock=lock,
        )
        interrupted = False
        try:
            with stoppable():
                runner.run(missing, finished)
        except KeyboardInterrupt:
            interrupted = True
            print(INTERRUPTED, file=sys.stderr)
        report(settings, read_cells(settings, folder), folder, baseline(settings, options.against))
    if runner.failed:
        print(f"{len(runner.failed)} cells failed: {'; '.join(map(str, runner.failed))}", file=sys.stderr)
    return 130 if interrupted else int(bool(runner.failed))


@contextmanager
def stoppable() -> Iterator[None]:
    """Ask for an end as Ctrl-C does where the process is told to end or its terminal goes away (but for nohup)."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finished_seconds(results: Results) -> dict[str, list[float]]:
    """Wall times of finished cells by strategy."""
    found: dict[str, list[float]] = {}
    for run in results.runs:
        found.setdefault(run.cell.strategy, []).append(run.wall_seconds)
    return found


def report(settings: Settings, results: Results, folder: Path, against: str) -> None:
    """Write results.csv, predictions.jsonl.gz, table.md, plots and report.html, and print the tables."""
    if not results.runs:
        print("no cell is finished: there is nothing to report")
        return
    write_results(settings, results, folder)
    print("\n" + write_report(settings, results, folder, against))
    print(f"All of it: {folder / 'report.html'}")


def report_again(options: argparse.Namespace) -> None:
    """Write the report of a folder from its cells, or from its two files where it has no cells.

    Raises:
        ValueError: no comparison, files that do not fit together, or options of a training.
    """
    if given := [name for name in TRAINING_OPTIONS if getattr(options, name) not in (None, [])]:
        shown = "KEY=VALUE" if given[0] == "overrides" else f"--{given[0].replace('_', '-')}"
        raise ValueError(f"{shown} has no effect with --report-only, which trains nothing. Leave it out")
    folder: Path = options.output_dir
    settings = read_settings(folder)
    if settings is None:
        raise ValueError(f"--output-dir is {folder}: no {SETTINGS_FILE} in there. Give the folder of a comparison")
    has_cells = (folder / "cells").is_dir()
    if has_cells:
        check_kept(folder)
    results = (read_cells if has_cells else read_results)(settings, folder)
    report(settings, results, folder, baseline(settings, options.against))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        if options.report_only:
            report_again(options)
            return 0
        return compare(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after the trainings
        print(INTERRUPTED, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
