"""The settings and cells of a comparison of strategies, and the training command of a cell.

A cell is one training: a fold, a strategy and a seed. Imports hydra and omegaconf, not NeMo: a report is written
again without it.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_codert.compare.folds import CLEAN, Fold
from nemo_codert.compare.strategies import (
    ANY_CORPUS,
    CHECKPOINT,
    CORPUS,
    TARGETS,
    TERMS,
    TWIN,
    VARIANT,
    check_complete,
    composed,
    flat,
    is_twin,
    is_variant,
    makes_targets,
    needs_its_key,
    overrides_for,
    own_overrides,
    plain_name,
    takes_teacher,
    twin_overrides,
)
from nemo_codert.config.criteria import distillation_terms
from nemo_codert.config.hydra_text import hydra_value
from nemo_codert.config.schema import CoDERTConfig, StudentConfig
from nemo_codert.config.search import override_key
from nemo_codert.files.atomic import whole_file

BASELINE = "student"
TEACHER = "teacher"  # strategy whose model is the teacher of those that take a pre-trained one
TEACHER_WEIGHTS = "run/teacher.nemo"  # path in the teacher's cell
TARGET_FOLDER = "targets"  # folder in the cell of a cached teacher's student, until it is finished
SETTINGS_FILE = "comparison.json"
REPORTED_DIFFERENCES = 20
# Keys that the comparison sets, cell by cell.
OWN_KEYS = (
    *("strategy", "seed", "train", "trainer.max_steps", "model.tokenizer.dir"),
    *(f"model.{name}_ds.manifest_filepath" for name in ("train", "validation", "test")),
    *(f"exp_manager.{key}" for key in ("exp_dir", "name", "version", "explicit_log_dir", "resume_if_exists")),
)
# Keys that define a strategy: overriding them for all would erase the difference that is measured.
STRATEGY_KEYS = ("model.codert.teacher", "model.codert.share_decoder", TERMS)
# Keys that are the same for all strategies, so that updates, data order and student are.
SHARED_KEYS = ("seed", "trainer", "exp_manager", "model.sample_rate", "model.preprocessor", "model.spec_augment")
SHARED_KEYS += ("model.tokenizer", "model.train_ds", "model.validation_ds", "model.test_ds", "model.model_defaults")
SHARED_KEYS += ("model.student", "model.decoder", "model.joint", "model.loss", "model.rnnt_reduction", "model.optim")
SHARED_KEYS += ("model.decoding", "model.codert.bad_utterances")
TEACHERS_OWN = ("model.optim",)  # a teacher trained alone is not among the compared students
STUDENTS_OWN = ("model.student.aux_ctc",)  # a CTC head of the student is part of a strategy
VARIANTS_OWN = ("model.train_ds", "model.student.durations")  # what may make a variant: data, or a TDT student
TRAIN = "model.train_ds.manifest_filepath"
MONITOR = "exp_manager.checkpoint_callback_params.monitor"


@dataclass(frozen=True)
class Cell:
    """One training."""

    fold: str
    strategy: str
    seed: int

    @property
    def folder(self) -> str:
        """Path relative to the comparison's folder."""
        return f"cells/{self.fold}/seed{self.seed}/{self.strategy}"

    def __str__(self) -> str:
        return f"{self.fold}, seed {self.seed}, {self.strategy}"


@dataclass(frozen=True)
class Settings:
    """The definition of a comparison; `comparison.json` holds it.

    overrides: Hydra's, for every strategy. strategy_overrides: additional ones by strategy. config: the composed
    config of the lone student, flat. changes: for each strategy the keys in which its config differs from `config`.
    threads: torch's in a training. own_seeds: the trainings of two folds have no seed in common.
    """

    config_name: str
    overrides: list[str]
    strategy_overrides: dict[str, list[str]]
    threads: int
    max_steps: int
    strategies: list[str]
    seeds: list[int]
    folds: dict[str, Fold]
    config: dict[str, Any]
    changes: dict[str, dict[str, Any]]
    versions: dict[str, str]
    own_seeds: bool = False

    def seed_of(self, cell: "Cell") -> int:
        """Return the seed of a training: the cell's; with `own_seeds` and K folds, K times that plus the fold's."""
        return cell.seed * len(self.folds) + list(self.folds).index(cell.fold) if self.own_seeds else cell.seed

    def config_of(self, strategy: str) -> dict[str, Any]:
        """Return the composed config of a strategy, flat; keys that it lacks are None."""
        return {**self.config, **self.changes[strategy]}

    @property
    def test_sets(self) -> list[str]:
        """Test sets by name, the same in all folds."""
        return next(iter(self.folds.values())).test_sets

    def write(self, folder: Path) -> None:
        """Write `comparison.json`."""
        write_whole(folder / SETTINGS_FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file through a temporary one, so that `path` holds the old or the complete content; return `path`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_settings(folder: Path) -> Settings | None:
    """Return the settings of a comparison's folder; None where there is no such file.

    Raises:
        ValueError: the file does not hold settings.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        folds = {name: Fold(**fold) for name, fold in content.pop("folds").items()}
        settings = Settings(**content, folds=folds)
        _check_types(settings)
        return settings
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the settings of a comparison ({error}). Give another folder") from None


def _check_types(settings: Settings) -> None:
    """Raise ValueError where a field does not fit `Settings`, as in a file that was changed by hand."""
    names, texts = "one name or more, each once", "texts by name"
    wanted = {
        "config_name": (_is_all(str, [settings.config_name]), "a name"),
        "overrides": (_is_list(str, settings.overrides), "a list of texts"),
        "strategy_overrides": (_is_map(lambda own: _is_list(str, own), settings.strategy_overrides), "lists by name"),
        "threads": (_is_count(settings.threads), "a whole number, 1 or more"),
        "max_steps": (_is_count(settings.max_steps), "a whole number, 1 or more"),
        "strategies": (_is_choice(str, settings.strategies), names),
        "seeds": (_is_choice(int, settings.seeds), "one whole number or more, each once"),
        "folds": (settings.folds, "one fold or more"),
        "config": (_is_map(lambda _: True, settings.config), "values by name"),
        "changes": (_is_map(lambda own: isinstance(own, dict), settings.changes), "values by name of each strategy"),
        "versions": (_is_map(lambda own: isinstance(own, str), settings.versions), texts),
        "own_seeds": (isinstance(settings.own_seeds, bool), "true or false"),
    }
    first = next(iter(settings.folds.values()), None)
    for name, fold in settings.folds.items():
        wanted |= {
            f"folds.{name}.folder": (_is_all(str, [fold.folder]), "a name"),
            f"folds.{name}.test_sets": (_is_choice(str, fold.test_sets), names),
            f"folds.{name}.test_sets of all folds": (fold.test_sets == first.test_sets, "the same"),
            f"folds.{name}.sha256": (_is_map(lambda own: isinstance(own, str), fold.sha256), texts),
        }
    if faults := [f"{key}: wanted {what}" for key, (is_so, what) in wanted.items() if not is_so]:
        raise ValueError("; ".join(faults))


def _is_all(kind: type, values: Iterable[Any]) -> bool:
    return all(type(value) is kind for value in values)  # a bool does not count as a number


def _is_list(kind: type, values: Any) -> bool:
    return isinstance(values, list) and _is_all(kind, values)


def _is_choice(kind: type, values: Any) -> bool:
    return _is_list(kind, values) and 0 < len(values) == len(set(values))


def _is_count(value: Any) -> bool:
    return _is_all(int, [value]) and value >= 1


def _is_map(is_value: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, dict) and all(map(is_value, values.values()))


# ---- making the settings -------------------------------------------------------------------------------------------


def make_settings(
    *,
    config_name: str,
    overrides: Sequence[str],
    strategy_overrides: Mapping[str, Sequence[str]],
    max_steps: int | None,
    threads: int,
    strategies: Sequence[str],
    seeds: Sequence[int],
    folds: Mapping[str, Fold],
    versions: Mapping[str, str],
    own_seeds: bool = False,
) -> Settings:
    """Compose and check every strategy's config. A strategy that takes a pre-trained teacher adds `teacher`.

    A strategy or seed that is named twice is taken once.

    Raises:
        ValueError: unknown config, strategy or key, an override of a key that the comparison sets or that all
            strategies share, a key without a value, and steps that validation does not divide.
    """
    strategies, seeds = list(dict.fromkeys(strategies)), list(dict.fromkeys(seeds))
    _check_overrides(overrides, strategy_overrides)
    steps = [] if max_steps is None else [f"trainer.max_steps={max_steps}"]
    config = composed(config_name, BASELINE, [*overrides_for({}, overrides), *steps])
    updates = _checked_steps(config)
    _check_checkpoints(config)
    if config.get("model.use_cer"):
        raise ValueError("model.use_cer is true, but a comparison counts words: leave it out")

    def compose(strategy: str) -> dict[str, Any]:
        own = own_overrides(strategy_overrides, strategy)
        for_all = overrides
        if any(map(needs_its_key, overrides)):
            for_all = overrides_for(composed(config_name, strategy, own), overrides)
        return composed(config_name, strategy, [*for_all, *own, *steps])

    configs = {strategy: compose(strategy) for strategy in strategies}
    if any(map(takes_teacher, configs.values())) and TEACHER not in configs:
        configs = {TEACHER: compose(TEACHER), **configs}
    if twins := list(filter(is_twin, strategy_overrides)):
        name = twins[0].removesuffix(TWIN)
        raise ValueError(f"--override is for {twins[0]}: give it to {name}, the twin takes it too")
    known = {*map(plain_name, configs), *(name.removesuffix(TWIN) for name in configs)}
    if unknown := sorted(strategy_overrides.keys() - known):
        raise ValueError(f"--override is for {', '.join(unknown)}, but --strategies is {' '.join(configs)}")
    for override in filter(needs_its_key, overrides):
        if not any(overrides_for(own, [override]) for own in configs.values()):
            raise ValueError(
                f"{override!r} has no effect: none of {' '.join(configs)} has that key. Add it to one: "
                f"--override STRATEGY:+{override.lstrip('+')}"
            )
    changes = {strategy: _changes(strategy, own, config) for strategy, own in configs.items()}
    return Settings(
        config_name=config_name,
        overrides=list(overrides),
        strategy_overrides={name: list(values) for name, values in strategy_overrides.items()},
        threads=threads,
        max_steps=updates,
        strategies=list(configs),
        seeds=seeds,
        folds=dict(folds),
        config=config,
        changes=changes,
        versions=dict(versions),
        own_seeds=own_seeds,
    )


def _changes(strategy: str, own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys in which a strategy's config differs from the lone student's, once it has passed the checks."""
    check_complete(strategy, own, config)
    changes = {key: own.get(key) for key in {**config, **own} if own.get(key) != config.get(key)}
    own_keys = TEACHERS_OWN if plain_name(strategy) == TEACHER else STUDENTS_OWN
    own_keys += VARIANTS_OWN if is_variant(strategy) else ()
    shared = [key for key in changes if _is_below(key, SHARED_KEYS) and not _is_below(key, own_keys)]
    if shared:
        raise ValueError(
            f"{shared[0]} is {own.get(shared[0])!r} for {strategy} but {config.get(shared[0])!r} for {BASELINE}: "
            "updates, data and student must be the same for all strategies. Set it for all, after --, or, if it is "
            f"{' or '.join(VARIANTS_OWN)}, for a variant, {strategy}{VARIANT}LABEL"
        )
    return changes


def _check_overrides(for_all: Sequence[str], by_strategy: Mapping[str, Sequence[str]]) -> None:
    given = [("", override) for override in for_all]
    given += [(name, override) for name, overrides in by_strategy.items() for override in overrides]
    for name, override in given:
        keys = [key for key in OWN_KEYS if key != TRAIN or not is_variant(name)]
        if own := [key for key in keys if _is_below(key, (override_key(override),))]:
            raise ValueError(
                f"{override!r} sets {own[0]}, which the comparison gives to every cell itself. Leave it out"
            )
    for override in for_all:
        if CORPUS in override:
            raise ValueError(f"{override!r} names {CORPUS}: it is for one strategy, --override STRATEGY:{override}")
        if _defines_a_strategy(override_key(override)):
            raise ValueError(
                f"{override!r} would undo what makes the strategies differ. Give it to one: "
                f"--override STRATEGY:{override}"
            )


def _defines_a_strategy(key: str) -> bool:
    return any(_is_below(key, (own,)) or _is_below(own, (key,)) for own in STRATEGY_KEYS)


def _check_checkpoints(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the tested weights are those of the best dev WER, which the report states."""
    if config.get(MONITOR) != "val_wer" or not config.get("exp_manager.create_checkpoint_callback"):
        raise ValueError(
            f"the comparison tests the checkpoint with the best dev WER, but {MONITOR} is {config.get(MONITOR)!r} and "
            f"exp_manager.create_checkpoint_callback {config.get('exp_manager.create_checkpoint_callback')!r}. Set "
            "val_wer and true"
        )


def _is_below(key: str, parents: Iterable[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _checked_steps(config: Mapping[str, Any]) -> int:
    steps, every = config.get("trainer.max_steps"), config.get("trainer.val_check_interval")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"trainer.max_steps is {steps!r}: equal updates need a number, 1 or more (--max-steps)")
    batches = steps * (config.get("trainer.accumulate_grad_batches") or 1)
    if isinstance(every, int) and batches % every:
        raise ValueError(
            f"trainer.max_steps is {steps} but trainer.val_check_interval {every}: the last updates would not be "
            "validated. Give a multiple, or set trainer.val_check_interval after --"
        )
    return steps


# ---- continuing ----------------------------------------------------------------------------------------------------


def extended(stored: Settings, wanted: Settings, folder: Path) -> Settings:
    """Return the settings of a folder with the strategies, seeds and folds of a later call added to them.

    Paths of teachers, targets and noise in overrides are compared as they are given, not what lies there.

    Raises:
        ValueError: anything else differs; every difference is named.
    """
    pairs = {key: (getattr(stored, key), getattr(wanted, key)) for key in ("threads", "config_name", "own_seeds")}
    before, after = _without_terms(stored.config), _without_terms(wanted.config)
    before = {**_defaults_of_our_keys(after), **before}
    pairs |= {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    for strategy in stored.changes.keys() & wanted.changes.keys():
        old, new = (
            {**_without_terms(settings.changes[strategy]), **_terms(settings, strategy)}
            for settings in (stored, wanted)
        )
        pairs |= {f"{key} (of {strategy})": (old.get(key), new.get(key)) for key in {**old, **new}}
    had, added = _needing_their_key(stored), _needing_their_key(wanted)
    configs = [stored.config_of(strategy) for strategy in stored.strategies]
    taken = {key for key in added if any(overrides_for(config, [added[key]]) for config in configs)}
    pairs |= {key: (had.get(key), added[key]) for key in taken}
    for name in stored.folds.keys() & wanted.folds.keys():
        old, new = stored.folds[name].sha256, wanted.folds[name].sha256
        # Comparisons of earlier versions have no hashes of further training manifests.
        pairs |= {f"sha256 of {name}/{file}": (old[file], new.get(file)) for file in old}
    added_folds = sorted(wanted.folds.keys() - stored.folds.keys())
    if stored.own_seeds and any(stored.seeds) and added_folds:  # seed 0 of a fold is its number
        pairs["folds, which their seeds depend on"] = list(stored.folds), [*stored.folds, *added_folds]
    if stored.test_sets != wanted.test_sets:
        pairs["test sets"] = stored.test_sets, wanted.test_sets
    differences = [f"{key} is {new!r}, the folder has {old!r}" for key, (old, new) in pairs.items() if old != new]
    if differences:
        more = len(differences) - REPORTED_DIFFERENCES
        raise ValueError(
            f"{folder} holds a comparison with other settings:\n  - "
            + "\n  - ".join([*differences[:REPORTED_DIFFERENCES], *([f"... and {more} more"] if more > 0 else [])])
            + "\nContinue it with its own settings, or give another --output-dir"
        )
    strategies = [*stored.strategies, *(name for name in wanted.strategies if name not in stored.strategies)]
    if TEACHER in strategies:  # the teacher is trained first
        strategies = [TEACHER, *(name for name in strategies if name != TEACHER)]
    return Settings(
        **{
            **stored.__dict__,
            "strategies": strategies,
            "overrides": [*stored.overrides, *(added[key] for key in added if key not in had)],
            "strategy_overrides": {**wanted.strategy_overrides, **stored.strategy_overrides},
            "changes": {**wanted.changes, **stored.changes},
            "seeds": sorted({*stored.seeds, *wanted.seeds}),
            "folds": {**stored.folds, **wanted.folds},
        }
    )


def _needing_their_key(settings: Settings) -> dict[str, str]:
    """Return by key the overrides for those strategies alone that have the key."""
    return {override_key(override): override for override in filter(needs_its_key, settings.overrides)}


def _without_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not _is_below(key, (TERMS,))}


def _terms(settings: Settings, strategy: str) -> dict[str, Any]:
    """Return the terms of a strategy, flat and with all their keys; those that do nothing are left out.

    Comparisons of earlier versions have the flat keys of one term, and terms of weight 0 where there are none now. A
    strategy that was added to one later has named terms beside those flat keys, which are none of its own.
    """
    block: dict[str, Any] = {}
    for key, value in settings.config_of(strategy).items():
        if key.startswith(f"{TERMS}."):
            *names, last = key.removeprefix(f"{TERMS}.").split(".")
            node = block
            for name in names:
                node = node.setdefault(name, {})
            node[last] = value
    named_terms = {name: term for name, term in block.items() if isinstance(term, dict)}
    terms = distillation_terms(named_terms or block)
    used = {name: term for name, term in terms.items() if term["weight"] != 0 or term.get("layers")}
    return dict(flat(used, f"{TERMS}."))


def _defaults_of_our_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of keys of `config` that did not exist when the comparison was made."""
    blocks = {"student": StudentConfig, "codert": CoDERTConfig}
    plain = {name: OmegaConf.to_container(OmegaConf.structured(schema)) for name, schema in blocks.items()}
    return {key: value for key, value in flat({"model": plain}) if key in config}


# ---- cells ---------------------------------------------------------------------------------------------------------


def plan(
    settings: Settings,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[str] | None = None,
) -> list[Cell]:
    """Return the cells in the order of training: seed by seed, fold by fold, so that a seed is complete early.

    only: these strategies, and the teacher if one of them takes it. seeds, folds: only these.

    Raises:
        ValueError: `only` names a strategy that is not in the comparison.
    """
    for strategy in only or ():
        if strategy not in settings.strategies:
            raise ValueError(f"--only names {strategy!r}, the comparison has {', '.join(settings.strategies)}")
    chosen = {*(only or settings.strategies)}
    if any(takes_teacher(settings.config_of(strategy)) for strategy in chosen):
        chosen.add(TEACHER)
    strategies = [strategy for strategy in settings.strategies if strategy in chosen]
    return [
        Cell(fold, strategy, seed)
        for seed in settings.seeds
        if seeds is None or seed in seeds
        for fold in settings.folds
        if folds is None or fold in folds
        for strategy in strategies
    ]


def teacher_of(settings: Settings, cell: Cell) -> Cell | None:
    """Return the cell whose teacher this one takes: same fold, same seed; None where it takes none."""
    takes = takes_teacher(settings.config_of(cell.strategy))
    return Cell(cell.fold, TEACHER, cell.seed) if takes else None


def training_arguments(settings: Settings, cell: Cell, data_dir: str, output_dir: str) -> list[str]:
    """Return the training arguments of a cell; paths start with `data_dir` and `output_dir` as they are given."""
    return [*_plain_arguments(settings, cell), *_path_arguments(settings, cell, data_dir, output_dir)]


def target_arguments(settings: Settings, cell: Cell, data_dir: str, output_dir: str) -> list[str]:
    """Return the arguments of `codert cache` for the targets that a cell is trained with; none where it needs none.

    The teacher gets `clean.json` of the corpus where there is one, which has the ids of `train.json`.
    """
    config, fold = settings.config_of(cell.strategy), settings.folds[cell.fold]
    if not makes_targets(config):
        return []
    manifest = CLEAN if CLEAN in fold.sha256 else "train.json"
    root, folder = _root(fold, data_dir), _targets(cell, output_dir)
    given = config.get(CHECKPOINT)
    weights = given.replace(ANY_CORPUS, root) if given else _weights(settings, cell, output_dir)
    return ["--teachers", weights, "--manifest", f"{root}/{manifest}", "--keep", "encoder", "--output", folder]


def shell_command(settings: Settings, cell: Cell) -> str:
    """Return the command of a cell for a shell, relative to $DATA and $OUTPUT."""
    plain = [shlex.quote(argument) for argument in _plain_arguments(settings, cell)]
    paths = [f'"{argument}"' for argument in _path_arguments(settings, cell, "$DATA", "$OUTPUT")]
    threads = f"OMP_NUM_THREADS={settings.threads} MKL_NUM_THREADS={settings.threads}"
    command = " ".join([threads, "python -m nemo_codert.cli.train", *plain, *paths])
    targets = [f'"{argument}"' for argument in target_arguments(settings, cell, "$DATA", "$OUTPUT")]
    return " ".join([threads, "python -m nemo_codert.cli.cache", *targets, "&&", command]) if targets else command


def _plain_arguments(settings: Settings, cell: Cell) -> list[str]:
    config = settings.config_of(cell.strategy)
    own = own_overrides(settings.strategy_overrides, cell.strategy)
    return [
        f"--config-name={settings.config_name}",
        f"strategy={plain_name(cell.strategy)}",
        *overrides_for(config, settings.overrides),
        *(override for override in own if CORPUS not in override),
        *twin_overrides(cell.strategy, config),
        f"trainer.max_steps={settings.max_steps}",
        f"seed={settings.seed_of(cell)}",
        f"exp_manager.name={cell.strategy}",
        "+exp_manager.version=run",
    ]


def _path_arguments(settings: Settings, cell: Cell, data_dir: str, output_dir: str) -> list[str]:
    fold, config = settings.folds[cell.fold], settings.config_of(cell.strategy)
    root = _root(fold, data_dir)
    tests = ",".join(hydra_value(f"{root}/{name}.json") for name in fold.test_sets)
    own = own_overrides(settings.strategy_overrides, cell.strategy)
    if any(CORPUS in override for override in own) and not re.fullmatch(r"[\w./$+-]+", root):
        raise ValueError(f"{root} has characters that an override with {CORPUS} cannot hold. Move the data")
    has_data = any(override_key(override) == TRAIN for override in own)
    arguments = [
        *([] if has_data else [f"{TRAIN}={hydra_value(f'{root}/train.json')}"]),
        *(override.replace(CORPUS, root) for override in own if CORPUS in override),
        f"model.validation_ds.manifest_filepath={hydra_value(f'{root}/dev.json')}",
        f"model.test_ds.manifest_filepath=[{tests}]",
        f"model.tokenizer.dir={hydra_value(f'{root}/tokenizer')}",
        f"exp_manager.exp_dir={hydra_value(f'{output_dir}/{Path(cell.folder).parent}')}",
    ]
    if takes_teacher(config):
        arguments.append(f"{CHECKPOINT}={hydra_value(_weights(settings, cell, output_dir))}")
    if makes_targets(config):
        arguments.append(f"{TARGETS}={hydra_value(_targets(cell, output_dir))}")
    return arguments


def _root(fold: Fold, data_dir: str) -> str:
    return data_dir if fold.folder == "." else f"{data_dir}/{fold.folder}"


def _weights(settings: Settings, cell: Cell, output_dir: str) -> str:
    return f"{output_dir}/{teacher_of(settings, cell).folder}/{TEACHER_WEIGHTS}"


def _targets(cell: Cell, output_dir: str) -> str:
    return f"{output_dir}/{cell.folder}/{TARGET_FOLDER}"
