"""Train several strategies over seeds and folds alike and compare their students, with intervals.

    codert compare --config-name fsdd --data-dir data/fsdd --output-dir runs/comparison \\
        --strategies student tandem_kd shared_kd --seeds 0-4 --jobs 2 -- model.optim.lr=5e-4

--data-dir is a corpus as codert prepare leaves it (train.json, dev.json, test*.json, tokenizer/), or a folder
of such corpora, the folds. Every fold, strategy and seed is one cell: a training in a process of its own, with the
same updates, data order and student at the start for all strategies of a seed. A strategy with a pre-trained teacher
brings `teacher` with it and takes the teacher of its own fold and seed, unless model.codert.teacher_checkpoint is
given; with a cached teacher its targets are stored first (of clean.json in the corpus where there is one, which has
the ids of train.json), unless model.codert.teacher_cache is given. NAME-twin is strategy NAME without distillation:
weight 0 for every term, all else alike. Hydra overrides after `--` are for all strategies, but those
of model.codert.student_hears.KEY for the ones with that key; --override STRATEGY:KEY=VALUE is for one and its twin.
NAME@LABEL is a variant of strategy NAME, with the overrides of NAME and then its own, --override NAME@LABEL:KEY=VALUE;
it alone may have other training data (model.train_ds). {corpus} in such overrides is the folder of the fold's corpus:
model.codert.teacher_checkpoint={corpus}/teacher.nemo is a teacher for each fold. With --own-seeds every fold has
seeds of its own, so that each training counts as one draw.

The output folder: results.csv (one row a run), predictions.jsonl.gz, table.md, plots, report.html, and cells/ with
command, log and .nemo files of every run. The same command again resumes where it stopped: finished cells are never
trained again, failed and interrupted ones are. Strategies, seeds and folds may be added; a folder made with other
settings is refused. --only trains some strategies of the comparison now, --seeds and --folds some of its seeds and
folds. A copied folder, with nothing but comparison.json, results.csv and predictions.jsonl.gz, is enough
to resume from, without the models of its cells, and for --report-only, which writes table, plots and report again.

Exit status 1: a training failed; 2: bad options, files or data; 130: interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nemo_codert.compare import run
from nemo_codert.compare.plan import BASELINE
from nemo_codert.config.arguments import require_installed

# Options that have no effect where nothing is trained.
TRAINING_OPTIONS = ("data_dir", "strategies", "seeds", "folds", "max_steps", "override", "only", "overrides")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; that of this process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="a corpus or a folder of corpora")
    parser.add_argument("--config-name", default="fsdd", metavar="NAME", help="a shipped config (fsdd)")
    parser.add_argument("--strategies", nargs="+", metavar="S", help=f"({' '.join(run.STRATEGIES)}); NAME-twin too")
    parser.add_argument("--seeds", nargs="+", metavar="N", help="numbers and ranges: 0-4 7 (0-2)")
    parser.add_argument("--own-seeds", action="store_true", help="no seed is that of two folds' trainings")
    parser.add_argument("--folds", nargs="+", metavar="NAME", help="of the folds in --data-dir (all)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="updates of every run (the config's)")
    parser.add_argument("--override", action="append", default=[], metavar="STRATEGY:KEY=VALUE", help="repeatable")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each training (1)")
    parser.add_argument("--only", nargs="+", metavar="S", help="train these strategies of the comparison now")
    parser.add_argument("--drop-models", action="store_true", help="keep no .nemo files but the teachers'")
    parser.add_argument("--against", metavar="S", help=f"baseline of the tables ({BASELINE}, else the first twin)")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the report again")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="Hydra overrides for all strategies")
    return parser.parse_args(arguments)


def strategy_overrides(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return overrides by strategy: `["tandem_kd:a.b=1"]` -> {"tandem_kd": ["a.b=1"]}.

    Raises:
        ValueError: a text without a strategy or a value.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        strategy, colon, override = text.partition(":")
        if not colon or "=" not in override:
            raise ValueError(f"--override is {text!r}, wanted STRATEGY:KEY=VALUE")
        found.setdefault(strategy, []).append(override)
    return found


def train_and_report(options: argparse.Namespace) -> int:
    """Make the comparison that the options describe; returns the exit status.

    Raises:
        ValueError: see `run.compare`.
    """
    wanted = run.Comparison(
        output_dir=options.output_dir,
        data_dir=options.data_dir,
        config_name=options.config_name,
        strategies=options.strategies,
        seeds=run.seed_numbers(options.seeds) if options.seeds else None,
        folds=options.folds,
        max_steps=options.max_steps,
        overrides=options.overrides,
        strategy_overrides=strategy_overrides(options.override),
        jobs=options.jobs,
        threads=options.threads,
        only=options.only,
        keep_models=not options.drop_models,
        against=options.against,
        own_seeds=options.own_seeds,
    )
    with stoppable():
        outcome = run.compare(wanted, trainer=run.TRAINER, cacher=run.CACHER)
    show(outcome.tables, outcome.folder)
    if outcome.failed:
        print(f"{len(outcome.failed)} cells failed: {'; '.join(map(str, outcome.failed))}", file=sys.stderr)
    return 130 if outcome.interrupted else int(bool(outcome.failed))


def report_only(options: argparse.Namespace) -> int:
    """Write the report of a folder again; returns the exit status.

    Raises:
        ValueError: options of a training, or see `run.report_again`.
    """
    if given := [name for name in TRAINING_OPTIONS if getattr(options, name) not in (None, [])]:
        shown = "KEY=VALUE" if given[0] == "overrides" else f"--{given[0].replace('_', '-')}"
        raise ValueError(f"{shown} has no effect with --report-only, which trains nothing. Leave it out")
    show(run.report_again(options.output_dir, options.against), options.output_dir)
    return 0


def show(tables: str, folder: Path) -> None:
    """Print the tables of a comparison."""
    if not tables:
        print("no cell is finished: there is nothing to report")
        return
    print("\n" + tables)
    print(f"All of it: {folder / 'report.html'}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP too, except where the process ignores them (nohup)."""

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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        require_installed("scripts", "matplotlib", "jinja2")
        return report_only(options) if options.report_only else train_and_report(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # outside the trainings, which handle an interrupt themselves
        print(run.INTERRUPTED, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
