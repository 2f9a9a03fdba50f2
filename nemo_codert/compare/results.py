"""Results of a comparison: its finished runs and their transcripts, in its cells and in two files to be passed on.

A finished cell holds `result.json`. `results.csv` and `predictions.jsonl.gz` hold all cells and are enough, with the
settings, to rebuild every table: none of them names a folder of a machine.
"""

import csv
import gzip
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import nemo_codert
from nemo_codert.compare.plan import BASELINE, TEACHER, Cell, Settings, plan, write_whole
from nemo_codert.compare.strategies import plain_name
from nemo_codert.config.criteria import teacher_transcribes
from nemo_codert.data.manifest import read_manifest
from nemo_codert.evaluation.word_errors import WordErrors, total_word_errors

PACKAGE = Path(nemo_codert.__file__).resolve().parent
RESULT_FILE = "result.json"
RUNS_FILE = "results.csv"
PREDICTIONS_FILE = "predictions.jsonl.gz"
CURVES_FILE = "dev_wer.csv"
BRANCHES = ("student", "teacher")
CODE = "code_sha256"
CPU = "cpu_seconds"
COUNTS = ("words", "substitutions", "insertions", "deletions")


@dataclass(frozen=True)
class Transcripts:
    """One test set of a fold: ids, speakers ("" if unknown), references, and texts by system, all of one length."""

    fold: str
    name: str
    ids: list[str]
    speakers: list[str]
    references: list[str]
    hypotheses: dict[str, list[str]]


@dataclass(frozen=True)
class Run:
    """A finished training: optimizer steps, wall time with start-up and testing, trained parameters by branch.

    code: `source_hash` of what trained it, "" where unknown (older cells lack it). cpu_seconds: of all its threads and
    processes, None where unknown. dev_wers: by branch, (optimizer steps, WER) of every validation.
    """

    cell: Cell
    updates: int
    wall_seconds: float
    parameters: dict[str, int]
    code: str = ""
    cpu_seconds: float | None = None
    dev_wers: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Finished runs in the order of the settings, and their transcripts by fold and test set."""

    runs: list[Run]
    transcripts: list[Transcripts]


def system_name(cell: Cell, branch: str) -> str:
    """Return the key of one recogniser of a fold: a run's student or teacher."""
    return f"{cell.strategy}/{cell.seed}/{branch}"


def tested_branches(strategy: str) -> tuple[str, ...]:
    """Return the branches that a run of a strategy has, all of which are tested."""
    return {BASELINE: ("student",), TEACHER: ("teacher",)}.get(plain_name(strategy), BRANCHES)


def _branches_of_run(cell: Cell, run: Path) -> tuple[str, ...]:
    """Return the branches that a run has transcribed the test sets with: not a teacher without its text."""
    branches, config = tested_branches(cell.strategy), run / "config.yaml"
    if branches == BRANCHES and config.is_file() and not teacher_transcribes(OmegaConf.load(config).model.codert):
        return ("student",)
    return branches


def source_hash(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the code that a training runs: the package's files and their names."""
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        content.update(f"{path.relative_to(package.parent).as_posix()} {len(source)}\n".encode() + source)
    return content.hexdigest()


# ---- a cell --------------------------------------------------------------------------------------------------------


def finish_cell(
    settings: Settings,
    cell: Cell,
    folder: Path,
    fold_dir: Path,
    wall_seconds: float,
    code: str = "",
    cpu_seconds: float | None = None,
) -> None:
    """Turn the predictions in a cell's run folder into `result.json`, which marks the cell as finished.

    Args:
        folder: the cell's folder.
        fold_dir: folder of the fold's corpus; utterances are named relative to it.
        code, cpu_seconds: see `Run`.

    Raises:
        ValueError: predictions of a branch that are missing or of other utterances, or a run of fewer updates.
    """
    found: dict[str, Any] = {}
    sets: dict[str, Transcripts] = {}
    for branch in _branches_of_run(cell, folder / "run"):
        root = folder / "run" / "predictions" / branch
        if not root.is_dir():
            raise ValueError(f"{cell}: the run left no predictions of its {branch} in {folder / 'run'}")
        for name in settings.test_sets:
            lines = read_manifest(root / f"{name}.json")
            about = json.loads((root / f"{name}_summary.json").read_text(encoding="utf-8"))
            found[branch] = about
            own = _transcripts(cell, branch, name, lines, fold_dir)
            sets[name] = merged(sets[name], own) if name in sets else own
    for branch, about in found.items():
        if about["updates"] != settings.max_steps:
            raise ValueError(f"{cell}: {branch} had {about['updates']} updates, not {settings.max_steps}")
    parameters = {branch: about["trained_parameters"] for branch, about in found.items()}
    used = None if cpu_seconds is None else round(cpu_seconds, 1)
    curves = _dev_wers(folder / "run", list(found))
    run = Run(cell, settings.max_steps, round(wall_seconds, 1), parameters, code, used, curves)
    result = _result(run, sets.values())
    for key in ("device", "decoding"):  # older runs lack them
        if known := {branch: about[key] for branch, about in found.items() if key in about}:
            result[key] = known
    write_whole(folder / RESULT_FILE, json.dumps(result, ensure_ascii=False) + "\n")


def _dev_wers(run: Path, branches: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the dev WER of every validation of a run; the events count steps from 0. Empty without events."""
    from nemo_codert.evaluation.learning_curves import WERS, read_curves

    try:
        curves = read_curves(run)
    except ValueError:
        return {}
    names = {branch: name for name, branch in WERS.items()} if len(branches) > 1 else {branches[0]: "val_wer"}
    return {
        branch: [(step + 1, round(wer, 6)) for step, wer in curves[names[branch]]]
        for branch in branches
        if names[branch] in curves
    }


def _result(run: Run, sets: Iterable[Transcripts]) -> dict[str, Any]:
    """Return the content of `result.json`, which `_read_cell` reads."""
    return {
        "updates": run.updates,
        "wall_seconds": run.wall_seconds,
        CPU: run.cpu_seconds,
        "parameters": run.parameters,
        CODE: run.code,
        "dev_wers": run.dev_wers,
        "test_sets": [asdict(part) for part in sets],
    }


def _transcripts(cell: Cell, branch: str, name: str, lines: list[dict[str, Any]], fold_dir: Path) -> Transcripts:
    root = os.path.abspath(fold_dir)  # links are not followed, as in manifests
    audio = [Path(os.path.abspath(line["audio_filepath"])) for line in lines]
    ids = [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in audio]
    ids = [f"{id_}@{line['offset']:g}" if line.get("offset") else id_ for id_, line in zip(ids, lines, strict=True)]
    times = Counter(ids)
    ids = [f"{id_}#{number}" if times[id_] > 1 else id_ for number, id_ in enumerate(ids, start=1)]
    return Transcripts(
        fold=cell.fold,
        name=name,
        ids=ids,
        speakers=[_speaker(line) for line in lines],
        references=[line["text"] for line in lines],
        hypotheses={system_name(cell, branch): [line["pred_text"] for line in lines]},
    )


def _speaker(line: dict[str, Any]) -> str:
    speaker = line.get("speaker")
    return "" if speaker is None else str(speaker)  # 0 is a valid name


def merged(first: Transcripts, second: Transcripts) -> Transcripts:
    """Merge the texts of both, which must be of the same utterances.

    Raises:
        ValueError: other utterances or references; the first that differs is named.
    """
    if first.ids != second.ids or first.references != second.references:
        pairs = [list(zip(part.ids, part.references, strict=True)) for part in (first, second)]
        shorter = min(map(len, pairs))
        place = next((i for i in range(shorter) if pairs[0][i] != pairs[1][i]), shorter)
        ours, theirs = (pair[place] if place < len(pair) else "nothing" for pair in pairs)
        raise ValueError(
            f"test set {first.name} of fold {first.fold} is not the same for {', '.join(first.hypotheses)} and "
            f"{', '.join(second.hypotheses)}: utterance {place + 1} is {ours} and {theirs}. "
            "Systems are compared on the same utterances only: train the later one again on this manifest"
        )
    return Transcripts(
        **{
            **first.__dict__,
            "hypotheses": {**first.hypotheses, **second.hypotheses},
        }
    )


def is_finished(cell: Cell, folder: Path) -> bool:
    """Return whether a cell of the comparison in `folder` has its result."""
    return (folder / cell.folder / RESULT_FILE).is_file()


def read_cells(settings: Settings, folder: Path) -> Results:
    """Read the results of the finished cells of a comparison.

    Raises:
        ValueError: an invalid `result.json`, or cells of different utterances.
    """
    runs, sets = [], {}
    for cell in _table_order(settings):
        if not is_finished(cell, folder):
            continue
        run, parts = _read_cell(cell, folder / cell.folder / RESULT_FILE)
        runs.append(run)
        for own in parts:
            key = own.fold, own.name
            sets[key] = merged(sets[key], own) if key in sets else own
    return Results(runs, [sets[key] for key in _set_keys(settings) if key in sets])


def _read_cell(cell: Cell, path: Path) -> tuple[Run, list[Transcripts]]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        curves = {name: [(step, wer) for step, wer in own] for name, own in result.get("dev_wers", {}).items()}
        run = Run(
            cell,
            result["updates"],
            result["wall_seconds"],
            result["parameters"],
            result.get(CODE, ""),
            result.get(CPU),
            curves,
        )
        return run, [Transcripts(**item) for item in result["test_sets"]]
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the result of a cell ({error!r}): delete it and the cell is trained again"
        ) from error


def _table_order(settings: Settings) -> list[Cell]:
    """Return the cells fold by fold, strategy by strategy, seed by seed."""
    folds, strategies = list(settings.folds), settings.strategies
    return sorted(plan(settings), key=lambda c: (folds.index(c.fold), strategies.index(c.strategy), c.seed))


def _set_keys(settings: Settings) -> list[tuple[str, str]]:
    return [(fold, name) for fold in settings.folds for name in settings.test_sets]


# ---- files to be passed on -----------------------------------------------------------------------------------------


def errors_of(transcripts: Transcripts, system: str) -> WordErrors:
    """Return the summed word errors of one system."""
    return total_word_errors(transcripts.references, transcripts.hypotheses[system])


def write_results(settings: Settings, results: Results, folder: Path) -> None:
    """Write `results.csv` (a row a run), `predictions.jsonl.gz` (a line an utterance) and, where dev WERs are known,
    `dev_wer.csv` (a row a validation); same input, same bytes."""
    by_key = {(part.fold, part.name): part for part in results.transcripts}
    columns = ["strategy", "seed", "fold", "updates", "wall_seconds"]
    columns += [CPU] if any(run.cpu_seconds is not None for run in results.runs) else []
    columns += [f"{branch}_parameters" for branch in BRANCHES]
    columns += [f"{b}_{name}_{count}" for b in BRANCHES for name in settings.test_sets for count in (*COUNTS, "wer")]
    columns += [CODE] if any(run.code for run in results.runs) else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for run in results.runs:
        row = {"strategy": run.cell.strategy, "seed": run.cell.seed, "fold": run.cell.fold}
        row |= {"updates": run.updates, "wall_seconds": run.wall_seconds}
        row |= {CODE: run.code} if CODE in columns else {}
        row |= {CPU: "" if run.cpu_seconds is None else run.cpu_seconds} if CPU in columns else {}
        for branch, parameters in run.parameters.items():
            row[f"{branch}_parameters"] = parameters
            for name in settings.test_sets:
                row |= _counts(by_key[run.cell.fold, name], run.cell, branch)
        writer.writerow(row)
    write_whole(folder / RUNS_FILE, text.getvalue())
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in _lines(results.transcripts))
    write_whole(folder / PREDICTIONS_FILE, packed.getvalue())
    if lines := _curve_lines(results.runs):
        write_whole(folder / CURVES_FILE, "strategy,seed,fold,branch,step,dev_wer\n" + "".join(lines))


def _curve_lines(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.cell.strategy},{run.cell.seed},{run.cell.fold},{branch},{step},{wer:.6f}\n"
        for run in runs
        for branch, points in run.dev_wers.items()
        for step, wer in points
    ]


def _read_curves(folder: Path) -> dict[Cell, dict[str, list[tuple[int, float]]]]:
    """Read `dev_wer.csv`; empty where there is none. Raises ValueError for a broken one."""
    found: dict[Cell, dict[str, list[tuple[int, float]]]] = {}
    if not (folder / CURVES_FILE).is_file():
        return found
    try:
        with (folder / CURVES_FILE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                own = found.setdefault(Cell(row["fold"], row["strategy"], int(row["seed"])), {})
                own.setdefault(row["branch"], []).append((int(row["step"]), float(row["dev_wer"])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{folder} holds a broken {CURVES_FILE}: {error!r}. Copy it again") from error
    return found


def _counts(transcripts: Transcripts, cell: Cell, branch: str) -> dict[str, str]:
    errors = errors_of(transcripts, system_name(cell, branch))
    counts = {name: str(getattr(errors, name)) for name in COUNTS}
    counts["wer"] = f"{errors.wer:.6f}"
    return {f"{branch}_{transcripts.name}_{name}": count for name, count in counts.items()}


def _lines(sets: Iterable[Transcripts]) -> Iterable[dict[str, Any]]:
    for part in sets:
        for place, id_ in enumerate(part.ids):
            yield {
                "fold": part.fold,
                "set": part.name,
                "id": id_,
                "speaker": part.speakers[place],
                "text": part.references[place],
                "hypotheses": {system: texts[place] for system, texts in part.hypotheses.items()},
            }


def read_result_files(settings: Settings, folder: Path) -> Results:
    """Read results from `results.csv` and `predictions.jsonl.gz`.

    Raises:
        ValueError: a file is missing or broken, or the word errors of the two files differ.
    """
    for name in (RUNS_FILE, PREDICTIONS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: give the folder of a comparison")
    try:
        with gzip.open(folder / PREDICTIONS_FILE, "rt", encoding="utf-8") as file:
            sets = _sets([json.loads(line) for line in file])
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds a broken {PREDICTIONS_FILE}: {error!r}. Copy it again") from error
    runs, rows = _read_runs(folder)
    _check_runs(settings, runs, sets, folder)
    by_key = {(part.fold, part.name): part for part in sets}
    for run, row in zip(runs, rows, strict=True):
        for branch in run.parameters:
            for name in settings.test_sets:
                part = by_key.get((run.cell.fold, name))
                if part is None or system_name(run.cell, branch) not in part.hypotheses:
                    raise ValueError(f"{folder / PREDICTIONS_FILE} has no texts for {run.cell}, {branch}, {name}")
                for column, value in _counts(part, run.cell, branch).items():
                    if row.get(column) != value:
                        raise ValueError(
                            f"{column} of {run.cell} is {row.get(column)} in {RUNS_FILE} but {value} by "
                            f"{PREDICTIONS_FILE} of {folder}: they are not of one comparison. Copy both again"
                        )
    return Results(runs, sets)


def _check_runs(settings: Settings, runs: Sequence[Run], sets: Sequence[Transcripts], folder: Path) -> None:
    """Raise ValueError unless the rows of `results.csv` are runs of the settings and match the transcripts."""
    path, seen = folder / RUNS_FILE, set()
    for run in runs:
        if run.cell in seen:
            raise ValueError(f"{path} has two rows of {run.cell}. Copy it again")
        seen.add(run.cell)
        if run.updates != settings.max_steps:
            raise ValueError(
                f"{path} has {run.updates} updates of {run.cell}, the comparison {settings.max_steps}: it is not of "
                "this comparison. Copy it again"
            )
    rows = {(run.cell.fold, system_name(run.cell, branch)) for run in runs for branch in run.parameters}
    for part in sets:
        if lost := [system for system in part.hypotheses if (part.fold, system) not in rows]:
            raise ValueError(
                f"{path} has no row for {lost[0]} of fold {part.fold}, which {PREDICTIONS_FILE} has. Copy both again"
            )


def restore_cells(settings: Settings, folder: Path) -> int:
    """Make cells of the results in `folder` where it holds no `cells`, as in a passed-on folder; return how many.

    The cells are finished, so a comparison resumes from them, but have no log and no model.

    Raises:
        ValueError: see `read_result_files`.
    """
    if (folder / "cells").exists() or not ((folder / RUNS_FILE).is_file() and (folder / PREDICTIONS_FILE).is_file()):
        return 0
    results = read_result_files(settings, folder)
    for run in results.runs:
        own = {system_name(run.cell, branch) for branch in run.parameters}
        sets = [_of_systems(part, own) for part in results.transcripts if part.fold == run.cell.fold]
        result = _result(run, sets)
        (folder / run.cell.folder).mkdir(parents=True)
        write_whole(folder / run.cell.folder / RESULT_FILE, json.dumps(result, ensure_ascii=False) + "\n")
    return len(results.runs)


def _of_systems(part: Transcripts, systems: set[str]) -> Transcripts:
    return replace(part, hypotheses={name: texts for name, texts in part.hypotheses.items() if name in systems})


def check_kept(folder: Path) -> None:
    """Raise ValueError if `results.csv` has runs whose cells are not in `folder`: rewriting it would lose them.

    A cell whose folder has no result will be trained again.
    """
    if not (folder / RUNS_FILE).is_file():
        return
    runs, _ = _read_runs(folder)
    if lost := [run.cell for run in runs if not (folder / run.cell.folder).is_dir()]:
        raise ValueError(
            f"{folder / RUNS_FILE} reports {len(lost)} runs whose cells are not here, first {lost[0]}: they would be "
            "lost. Copy cells/ back, or give another --output-dir"
        )


def _read_runs(folder: Path) -> tuple[list[Run], list[dict[str, str]]]:
    """Read the runs of `results.csv`, and its rows."""
    try:
        with (folder / RUNS_FILE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        runs = [_run(row) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{folder} holds a broken {RUNS_FILE}: {error!r}. Copy it again") from error
    curves = _read_curves(folder)
    return [replace(run, dev_wers=curves.get(run.cell, {})) for run in runs], rows


def _run(row: dict[str, str]) -> Run:
    cell = Cell(row["fold"], row["strategy"], int(row["seed"]))
    parameters = {branch: int(row[f"{branch}_parameters"]) for branch in BRANCHES if row[f"{branch}_parameters"]}
    used = float(row[CPU]) if row.get(CPU) else None
    return Run(cell, int(row["updates"]), float(row["wall_seconds"]), parameters, row.get(CODE, ""), used)


def _sets(lines: Sequence[dict[str, Any]]) -> list[Transcripts]:
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        grouped.setdefault((line["fold"], line["set"]), []).append(line)
    return [
        Transcripts(
            fold=fold,
            name=name,
            ids=[line["id"] for line in own],
            speakers=[line["speaker"] for line in own],
            references=[line["text"] for line in own],
            hypotheses={system: [line["hypotheses"][system] for line in own] for system in own[0]["hypotheses"]},
        )
        for (fold, name), own in grouped.items()
    ]
