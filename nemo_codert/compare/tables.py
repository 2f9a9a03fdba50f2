"""Word error rates of a comparison's strategies, their gains over one of them, and tables of both."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

import numpy as np

from nemo_codert.compare.folds import ONE_FOLD
from nemo_codert.compare.plan import TEACHER, Cell, Settings, plan, teacher_of
from nemo_codert.compare.results import Results, Run, Transcripts, system_name, tested_branches
from nemo_codert.evaluation.bootstrap import (
    CONFIDENCE,
    MINIMUM_RECORDINGS,
    MINIMUM_WORDS,
    RESAMPLES,
    PairedErrors,
    Reduction,
    relative_reduction,
)
from nemo_codert.evaluation.word_errors import word_errors

VERDICTS = {
    "better": "fewer word errors than {against}: ",
    "worse": "more word errors than {against}: ",
    "no difference shown": "no difference to {against} is shown: ",
}
FEW = 5  # seeds or speakers: a bootstrap over fewer may give intervals that are too narrow


@dataclass(frozen=True)
class Score:
    """One branch of one strategy on one test set, of one fold or (`fold` None) of all folds together.

    speakers: 0 where none is named. wers: one for each seed finished in all these folds. reduction: against the
    baseline, over the seeds that both have (`paired_seeds`); None for a teacher, for the baseline itself, and without
    such a seed. most_seeds: the larger number of seeds of the two.
    """

    test_set: str
    fold: str | None
    strategy: str
    branch: str
    seeds: list[int]
    folds: int
    parameters: int
    words: int
    speakers: int
    wers: list[float]
    paired_seeds: list[int]
    most_seeds: int
    reduction: Reduction | None

    @property
    def wer(self) -> float:
        """Mean over seeds."""
        return fmean(self.wers)


@dataclass(frozen=True)
class Table:
    """A titled table of texts; the first column is left-aligned."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])


class ErrorCounts:
    """Word errors of every utterance of a comparison's results, counted once."""

    def __init__(self, results: Results, own_seeds: bool = False) -> None:
        self.own_seeds = own_seeds
        self.runs = {run.cell: run for run in results.runs}
        self.transcripts = {(part.fold, part.name): part for part in results.transcripts}
        self._errors: dict[tuple[str, str, str], np.ndarray] = {}

    def seeds(self, strategy: str, branch: str, folds: Sequence[str]) -> list[int]:
        """Return the seeds with which a strategy is finished in all of these folds and has this branch."""
        seeds = sorted({cell.seed for cell in self.runs if cell.strategy == strategy})
        return [seed for seed in seeds if all(self._has(Cell(fold, strategy, seed), branch) for fold in folds)]

    def _has(self, cell: Cell, branch: str) -> bool:
        return cell in self.runs and branch in self.runs[cell].parameters

    def errors(self, part: Transcripts, strategy: str, branch: str, seeds: Sequence[int]) -> np.ndarray:
        """Return [S, N] word errors on a test set of a fold."""
        return np.stack([self._row(part, system_name(Cell(part.fold, strategy, s), branch)) for s in seeds])

    def _row(self, part: Transcripts, system: str) -> np.ndarray:
        key = part.fold, part.name, system
        if key not in self._errors:
            pairs = zip(part.references, part.hypotheses[system], strict=True)
            self._errors[key] = np.array([word_errors(*pair).errors for pair in pairs])
        return self._errors[key]

    def repeated_sets(self) -> list[str]:
        """Return the test sets in which a named speaker is in more than one fold."""
        seen = Counter((part.name, name) for part in self.transcripts.values() for name in set(part.speakers) - {""})
        return sorted({test_set for (test_set, _), folds in seen.items() if folds > 1})

    @staticmethod
    def words(part: Transcripts) -> np.ndarray:
        """Return [N] reference words."""
        return np.array([len(reference.split()) for reference in part.references])

    def reduction(
        self, test_set: str, folds: Sequence[str], strategy: str, baseline: str, seeds: Sequence[int]
    ) -> Reduction:
        """Return the reduction of a strategy's student against the baseline's, over these folds and seeds."""
        parts = [self.transcripts[fold, test_set] for fold in folds]
        pairs = [[self.errors(part, name, "student", seeds) for name in (strategy, baseline)] for part in parts]
        return relative_reduction(
            [
                PairedErrors(system, reference, self.words(part), part.speakers)
                for part, (system, reference) in zip(parts, pairs, strict=True)
            ],
            own_seeds=self.own_seeds,
        )

    def trainings(self, seeds: int, folds: Sequence[str]) -> int:
        """Return how many draws some seeds in these folds are: that many, or with seeds of their own one a fold."""
        return seeds * len(folds) if self.own_seeds else seeds


def scores(settings: Settings, counts: ErrorCounts, against: str) -> list[Score]:
    """Return the scores of every strategy's student and teacher, of all folds together first, then of each."""
    found = []
    for test_set in settings.test_sets:
        for fold, folds in _groups(settings):
            for branch in ("student", "teacher"):
                for strategy in settings.strategies:
                    if seeds := counts.seeds(strategy, branch, folds):
                        found.append(_score(counts, test_set, fold, folds, strategy, branch, seeds, against))
    return found


def _groups(settings: Settings) -> Iterator[tuple[str | None, list[str]]]:
    folds = list(settings.folds)
    yield None, folds
    if len(folds) > 1:
        yield from ((fold, [fold]) for fold in folds)


def _score(
    counts: ErrorCounts,
    test_set: str,
    fold: str | None,
    folds: Sequence[str],
    strategy: str,
    branch: str,
    seeds: list[int],
    against: str,
) -> Score:
    parts = [counts.transcripts[name, test_set] for name in folds]
    errors = sum(counts.errors(part, strategy, branch, seeds).sum(axis=1) for part in parts)  # [S]
    words = int(sum(counts.words(part).sum() for part in parts))
    paired, others = [], counts.seeds(against, "student", folds)
    if branch == "student" and strategy != against:
        paired = [seed for seed in seeds if seed in others]
    return Score(
        test_set=test_set,
        fold=fold,
        strategy=strategy,
        branch=branch,
        seeds=seeds,
        folds=len(folds),
        parameters=counts.runs[Cell(folds[0], strategy, seeds[0])].parameters[branch],
        words=words,
        speakers=len({speaker for part in parts for speaker in part.speakers if speaker}),
        wers=[float(count / words) if words else float("nan") for count in errors],
        paired_seeds=paired,
        most_seeds=counts.trainings(max(len(seeds), len(others)), folds),
        reduction=counts.reduction(test_set, folds, strategy, against, paired) if paired else None,
    )


# ---- tables --------------------------------------------------------------------------------------------------------


def verdicts(found: Sequence[Score], against: str) -> list[str]:
    """Return a sentence or two for each test set: which student is better or worse than `against`, and by how much.

    Scores of all folds together count, or where there are none those of each fold.
    """
    together = [score for score in found if score.fold is None] or found
    groups: dict[str, list[Score]] = {}
    for score in together:
        if score.reduction:
            name = score.test_set if score.fold is None else f"{score.test_set}, fold {score.fold}"
            groups.setdefault(name, []).append(score)
    return [f"On {name} {_verdict(own, against)}" for name, own in groups.items()]


def _verdict(scores: Sequence[Score], against: str) -> str:
    """Return what the reductions of some students on one test set show, as one sentence."""
    by_verdict: dict[str, list[str]] = {}
    for score in sorted(scores, key=lambda score: -score.reduction.value):
        found = score.reduction
        share = f" by {abs(found.value):.1%} (95% interval {found.low:+.1%} to {found.high:+.1%})"
        shown = found.verdict in ("better", "worse")
        by_verdict.setdefault(found.verdict, []).append(label(score) + share * shown)
    parts = []
    for verdict, names in by_verdict.items():
        listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        parts.append(
            VERDICTS.get(verdict, "{verdict} for a verdict: ").format(against=against, verdict=verdict) + listed
        )
    return "; ".join(parts) + "."


def score_tables(settings: Settings, found: Sequence[Score], against: str, *, each_fold: bool) -> list[Table]:
    """Return one table for each test set: of all folds together, or of each fold where there are several."""
    found = [score for score in found if (score.fold is not None) is each_fold]
    header = ("strategy", "runs", "parameters", "WER, mean ± sd", f"relative reduction against {against}")
    header = (*header, "verdict", "words", "speakers")
    keys = dict.fromkeys((score.test_set, score.fold) for score in found)
    return [
        Table(
            title=_title(settings, *key),
            header=_shown(header, against),
            rows=[_shown(_cells(score), against) for score in found if (score.test_set, score.fold) == key],
        )
        for key in keys
    ]


def _title(settings: Settings, test_set: str, fold: str | None) -> str:
    if fold is not None:
        return f"{test_set}, fold {fold}"
    return test_set if list(settings.folds) == [ONE_FOLD] else f"{test_set}, {len(settings.folds)} folds together"


def _shown(cells: tuple[str, ...], against: str) -> tuple[str, ...]:
    """Return all cells, or those without reduction and verdict where only teachers are compared."""
    return (*cells[:4], *cells[6:]) if against == TEACHER else cells


def _cells(score: Score) -> tuple[str, ...]:
    return (
        label(score),
        str(len(score.seeds) * score.folds),
        f"{score.parameters:,}",
        f"{score.wer:.2%}" + (f" ± {100 * stdev(score.wers):.2f}" if len(score.wers) > 1 else ""),
        _interval(score.reduction, score.most_seeds),
        score.reduction.verdict if score.reduction else "",
        str(score.words),
        str(score.speakers or "?"),
    )


def label(score: Score) -> str:
    """Return the name of a score: the strategy for a student, a text for a teacher."""
    if score.branch == "student":
        return score.strategy
    return "teacher alone" if score.strategy == TEACHER else f"{score.strategy}: its teacher"


def _interval(reduction: Reduction | None, seeds: int) -> str:
    if reduction is None:
        return ""
    remark = f", {reduction.seeds} common seeds" if 1 < reduction.seeds < seeds else ""
    remark = ", one seed" if reduction.seeds == 1 else remark
    return f"{reduction.value:+.1%} [{reduction.low:+.1%}, {reduction.high:+.1%}]{remark}"


def training_tables(settings: Settings, counts: ErrorCounts) -> list[Table]:
    """Return a table of cost and dev WER, a row for each branch that was trained; none where neither is known."""
    rows = []
    for strategy in settings.strategies:
        runs = [run for cell, run in counts.runs.items() if cell.strategy == strategy]
        for branch in ("student", "teacher"):
            curves = [run.dev_wers[branch] for run in runs if run.dev_wers.get(branch)]
            if curves or (runs and branch in runs[0].parameters and branch == tested_branches(strategy)[0]):
                rows.append((strategy, branch, str(len(runs)), _cost(settings, counts, runs), *_progress(curves)))
    header = ("strategy", "branch", "runs", "core-minutes", "best dev WER", "change in the last quarter")
    return [Table("Trainings", header, rows)] if any(row[3] or row[4] for row in rows) else []


def _cost(settings: Settings, counts: ErrorCounts, runs: Sequence[Run]) -> str:
    """Return the mean core-minutes of some runs, and those of the teachers that were trained for them."""
    teachers = [counts.runs.get(teacher) for run in runs if (teacher := teacher_of(settings, run.cell))]
    costs = [[run.cpu_seconds for run in own if run and run.cpu_seconds is not None] for own in (runs, teachers)]
    return " + ".join(f"{fmean(own) / 60:.1f}" for own in costs if own)


def _progress(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[str, str]:
    """Return the mean of the best dev WERs, and the relative change from three quarters of the updates to the end."""
    if not curves:
        return "", ""
    best = fmean(min(wer for _, wer in points) for points in curves)
    starts = [next(wer for step, wer in points if step >= 0.75 * points[-1][0]) for points in curves]
    before, after = fmean(starts), fmean(points[-1][1] for points in curves)
    return f"{best:.2%}", f"{after / before - 1:+.1%}" if before > 0 and len(curves[0]) > 1 else ""


def pair_tables(settings: Settings, counts: ErrorCounts) -> list[Table]:
    """Compare every strategy's student with every earlier one's, all folds together; none for less than three."""
    folds = list(settings.folds)
    seeds = {name: counts.seeds(name, "student", folds) for name in settings.strategies}
    students = [name for name, own in seeds.items() if own]
    if len(students) < 3:
        return []
    tables = []
    for test_set in settings.test_sets:
        rows = []
        for baseline, strategy in combinations(students, 2):
            if common := [seed for seed in seeds[strategy] if seed in seeds[baseline]]:
                reduction = counts.reduction(test_set, folds, strategy, baseline, common)
                most = counts.trainings(max(len(seeds[strategy]), len(seeds[baseline])), folds)
                cells = strategy, baseline, str(reduction.seeds), _interval(reduction, most), reduction.verdict
                rows.append(cells)
        title = f"Each against each, {_title(settings, test_set, None)}"
        tables.append(Table(title, ("strategy", "against", "seeds", "relative reduction", "verdict"), rows))
    return tables


def description(settings: Settings, counts: ErrorCounts) -> list[str]:
    """Return a description of the comparison, a line each."""
    lines = [
        f"Config `{settings.config_name}`, {settings.max_steps} updates a run, {settings.threads} "
        f"thread{'s' * (settings.threads > 1)} each; seeds {', '.join(map(str, settings.seeds))}"
        f"{', every fold with seeds of its own' if settings.own_seeds else ''}; "
        f"{len(counts.runs)} of {len(plan(settings))} runs finished."
    ]
    if settings.overrides:
        lines.append("Overrides: " + " ".join(f"`{override}`" for override in settings.overrides))
    for strategy, overrides in settings.strategy_overrides.items():
        lines.append(f"Overrides of {strategy}: " + " ".join(f"`{override}`" for override in overrides))
    return [*lines, *_versions_of_the_code([run.code for run in counts.runs.values()])]


def _versions_of_the_code(codes: Sequence[str]) -> list[str]:
    """Return a line where the cells are known to be of several versions, or some known and some not."""
    versions, unknown = len({*codes} - {""}), codes.count("")
    if versions + bool(unknown) < 2:
        return []
    line = f"Cells were trained by {versions} version{'s' * (versions > 1)} of the code"
    return [line + (f", {unknown} of {len(codes)} by an unknown one." if unknown else ".")]


def explanation(found: Sequence[Score], repeated: Sequence[str] = (), own_seeds: bool = False) -> list[str]:
    """Return notes on reading the tables, a line each, with a warning where an interval rests on little.

    repeated: see `ErrorCounts.repeated_sets`. own_seeds: see `Settings`.
    """
    lines = [
        "WER: summed errors over summed words, decoded as the config says, of the checkpoint with the best dev WER; "
        "mean and standard deviation over seeds. Of a pair it is the checkpoint with the student's best dev WER, so "
        "its teacher may have been better at another step.",
        f"Relative reduction: 1 - errors / errors of the other, paired by seed and fold, with a {CONFIDENCE:.0%} "
        f"interval from {RESAMPLES:,} resamples of seeds, speakers (where there are several) and recordings. "
        "`no difference shown`: the interval holds zero. "
        f"Below {MINIMUM_WORDS} words or {MINIMUM_RECORDINGS} recordings there is no verdict.",
    ]
    reductions = [score.reduction for score in found if score.reduction]
    if own_seeds:
        lines.append("Every fold has seeds of its own: trainings, of any fold, are drawn in the place of seeds.")
    if any(reduction.seeds == 1 for reduction in reductions):
        lines.append("`one seed`: the interval is over recordings only and leaves out what another seed would change.")
    if any(1 < reduction.seeds < FEW for reduction in reductions):
        lines.append(f"An interval over fewer than {FEW} seeds may be too narrow.")
    if any(1 < reduction.speakers < FEW for reduction in reductions):
        lines.append(f"An interval over fewer than {FEW} speakers may be too narrow.")
    if repeated:
        lines.append(
            f"{', '.join(repeated)}: a speaker is in several folds, perhaps with the same recordings. Words are "
            "counted in every fold, recordings of different folds are drawn as if they were different, and the "
            "interval over all folds is too narrow by that."
        )
    if any(reduction.speakers == 1 for reduction in reductions):
        lines.append(
            "An interval over one speaker, or over recordings of unnamed ones, says nothing of other speakers."
        )
    return lines


def markdown(settings: Settings, counts: ErrorCounts, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return the text of `table.md`."""
    blocks = ["# Comparison of strategies", *description(settings, counts)]
    blocks += [*(table.markdown().rstrip() for table in tables), "## How to read this", *notes]
    return "\n\n".join(blocks) + "\n"
