"""The settings and cells of a comparison of strategies, and the training command of a cell.

A cell is one training: a fold, a strategy and a seed. Imports hydra and omegaconf, not NeMo: a report is written
again without it.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.compare.folds import Fold
from nemo_codert.config.criteria import distillation_terms, named
from nemo_codert.config.hydra_text import hydra_value
from nemo_codert.config.nearest import nearest
from nemo_codert.config.schema import CoDERTConfig, StudentConfig
from nemo_codert.config.search import check_names, config_search
from nemo_codert.config.shipped import conf_folder
from nemo_codert.files.atomic import whole_file

BASELINE = "student"
TEACHER = "teacher"  # strategy whose model is the static ones' teacher
TEACHER_WEIGHTS = "run/teacher.nemo"  # path in the teacher's cell
SETTINGS_FILE = "comparison.json"
REPORTED_DIFFERENCES = 20
# Keys that the comparison sets, cell by cell.
OWN_KEYS = (
    *("strategy", "seed", "train", "trainer.max_steps", "model.tokenizer.dir", "model.codert.teacher_checkpoint"),
    *(f"model.{name}_ds.manifest_filepath" for name in ("train", "validation", "test")),
    *(f"exp_manager.{key}" for key in ("exp_dir", "name", "version", "explicit_log_dir", "resume_if_exists")),
)
# Keys that define a strategy: overriding them for all would erase the difference that is measured.
TERMS = "model.codert.distillation"
STRATEGY_KEYS = ("model.codert.teacher", "model.codert.share_decoder", TERMS)
# Keys that are the same for all strategies, so that updates, data order and student are.
SHARED_KEYS = ("seed", "trainer", "exp_manager", "model.sample_rate", "model.preprocessor", "model.spec_augment")
SHARED_KEYS += ("model.tokenizer", "model.train_ds", "model.validation_ds", "model.test_ds", "model.model_defaults")
SHARED_KEYS += ("model.student", "model.decoder", "model.joint", "model.loss", "model.rnnt_reduction", "model.optim")
SHARED_KEYS += ("model.decoding", "model.codert.bad_utterances")
TEACHERS_OWN = ("model.optim",)  # a teacher trained alone is not among the compared students
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
    threads: torch's in a training.
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
) -> Settings:
    """Compose and check every strategy's config. A static strategy adds the teacher's.

    A strategy or seed that is named twice is taken once.

    Raises:
        ValueError: unknown config, strategy or key, an override of a key that the comparison sets or that all
            strategies share, and steps that validation does not divide.
    """
    if any(map(is_static, strategies)) and TEACHER not in strategies:
        strategies = [TEACHER, *strategies]
    strategies, seeds = list(dict.fromkeys(strategies)), list(dict.fromkeys(seeds))
    if unknown := sorted(strategy_overrides.keys() - set(strategies)):
        raise ValueError(f"--override is for {', '.join(unknown)}, but --strategies is {' '.join(strategies)}")
    _check_overrides(overrides, strategy_overrides)
    steps = [] if max_steps is None else [f"trainer.max_steps={max_steps}"]
    config = composed(config_name, BASELINE, [*overrides, *steps])
    updates = _checked_steps(config)
    _check_checkpoints(config)
    changes = {}
    for strategy in strategies:
        own = composed(config_name, strategy, [*overrides, *strategy_overrides.get(strategy, ()), *steps])
        changes[strategy] = {key: own.get(key) for key in {**config, **own} if own.get(key) != config.get(key)}
        own_keys = TEACHERS_OWN if strategy == TEACHER else ()
        shared = [k for k in changes[strategy] if _is_below(k, SHARED_KEYS) and not _is_below(k, own_keys)]
        if shared:
            raise ValueError(
                f"{shared[0]} is {own.get(shared[0])!r} for {strategy} but {config.get(shared[0])!r} for {BASELINE}: "
                "updates, data and student must be the same for all strategies. Set it for all, after --"
            )
    return Settings(
        config_name=config_name,
        overrides=list(overrides),
        strategy_overrides={name: list(values) for name, values in strategy_overrides.items()},
        threads=threads,
        max_steps=updates,
        strategies=strategies,
        seeds=seeds,
        folds=dict(folds),
        config=config,
        changes=changes,
        versions=dict(versions),
    )


def composed(config_name: str, strategy: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the config of a strategy as training would get it, flat: dotted key -> value, references unresolved.

    A strategy without terms has no key below `model.codert.distillation`.

    Raises:
        ValueError: no such config, strategy or key.
    """
    return dict(_composed(config_name, strategy, tuple(overrides)))


@cache  # a fifth of a second each, and the lone student's is used twice
def _composed(config_name: str, strategy: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    known = sorted(path.stem for path in (conf_folder() / "strategy").glob("*.yaml"))
    if strategy not in known:
        wanted = f"wanted one of {', '.join(known)}; the nearest is {nearest(strategy, known)!r}"
        raise ValueError(f"there is no strategy {strategy!r}, {wanted}")
    GlobalHydra.instance().clear()
    try:
        search = config_search(["--config-name", config_name, f"strategy={strategy}", *overrides])
        check_names(search)
        with initialize_config_dir(str(conf_folder()), version_base=None):
            cfg = compose(config_name, list(search.overrides))
    except ValueError as error:
        raise ValueError(f"config {config_name!r} cannot be composed for {strategy}: {error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"config {config_name!r} cannot be composed for {strategy}: {error}") from error
    plain = OmegaConf.to_container(cfg, resolve=False)
    terms = named(plain["model"]["codert"].pop("distillation"))
    return {**dict(_flat(plain)), **dict(_flat(terms, f"{TERMS}."))}


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_overrides(for_all: Sequence[str], by_strategy: Mapping[str, Sequence[str]]) -> None:
    for override in [*for_all, *(override for overrides in by_strategy.values() for override in overrides)]:
        if own := [own for own in OWN_KEYS if _is_below(own, (_key(override),))]:
            raise ValueError(
                f"{override!r} sets {own[0]}, which the comparison gives to every cell itself. Leave it out"
            )
    for override in for_all:
        key = _key(override)
        if _defines_a_strategy(key):
            raise ValueError(
                f"{override!r} would undo what makes the strategies differ. Give it to one: "
                f"--override STRATEGY:{override}"
            )


def _defines_a_strategy(key: str) -> bool:
    return any(_is_below(key, (own,)) or _is_below(own, (key,)) for own in STRATEGY_KEYS)


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0]


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


def is_static(strategy: str) -> bool:
    """Return whether a strategy takes a teacher that was trained before."""
    return strategy.startswith("static")


# ---- continuing ----------------------------------------------------------------------------------------------------


def extended(stored: Settings, wanted: Settings, folder: Path) -> Settings:
    """Return the settings of a folder with the strategies, seeds and folds of a later call added to them.

    Raises:
        ValueError: anything else differs; every difference is named.
    """
    pairs = {"threads": (stored.threads, wanted.threads), "config_name": (stored.config_name, wanted.config_name)}
    before, after = _without_terms(stored.config), _without_terms(wanted.config)
    before = {**_defaults_of_our_keys(after), **before}
    pairs |= {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    for strategy in stored.changes.keys() & wanted.changes.keys():
        old, new = (
            {**_without_terms(settings.changes[strategy]), **_terms(settings, strategy)}
            for settings in (stored, wanted)
        )
        pairs |= {f"{key} (of {strategy})": (old.get(key), new.get(key)) for key in {**old, **new}}
    for name in stored.folds.keys() & wanted.folds.keys():
        old, new = stored.folds[name].sha256, wanted.folds[name].sha256
        pairs |= {f"sha256 of {name}/{file}": (old.get(file), new.get(file)) for file in {**old, **new}}
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
            "strategy_overrides": {**wanted.strategy_overrides, **stored.strategy_overrides},
            "changes": {**wanted.changes, **stored.changes},
            "seeds": sorted({*stored.seeds, *wanted.seeds}),
            "folds": {**stored.folds, **wanted.folds},
        }
    )


def _without_terms(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if not _is_below(key, (TERMS,))}


def _terms(settings: Settings, strategy: str) -> dict[str, Any]:
    """Return the terms of a strategy, flat and with all their keys; those that do nothing are left out.

    Comparisons of earlier versions have the flat keys of one term, and terms of weight 0 where there are none now.
    """
    block: dict[str, Any] = {}
    for key, value in {**settings.config, **settings.changes[strategy]}.items():
        if key.startswith(f"{TERMS}."):
            *names, last = key.removeprefix(f"{TERMS}.").split(".")
            node = block
            for name in names:
                node = node.setdefault(name, {})
            node[last] = value
    terms = distillation_terms(block)
    used = {name: term for name, term in terms.items() if term["weight"] != 0 or term.get("layers")}
    return dict(_flat(used, f"{TERMS}."))


def _defaults_of_our_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of keys of `config` that did not exist when the comparison was made."""
    blocks = {"student": StudentConfig, "codert": CoDERTConfig}
    plain = {name: OmegaConf.to_container(OmegaConf.structured(schema)) for name, schema in blocks.items()}
    return {key: value for key, value in _flat({"model": plain}) if key in config}


# ---- cells ---------------------------------------------------------------------------------------------------------


def plan(
    settings: Settings,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[str] | None = None,
) -> list[Cell]:
    """Return the cells in the order of training: seed by seed, fold by fold, so that a seed is complete early.

    only: these strategies, and the teacher if one of them is static. seeds, folds: only these.

    Raises:
        ValueError: `only` names a strategy that is not in the comparison.
    """
    for strategy in only or ():
        if strategy not in settings.strategies:
            raise ValueError(f"--only names {strategy!r}, the comparison has {', '.join(settings.strategies)}")
    chosen = {*(only or settings.strategies)}
    if any(map(is_static, chosen)):
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


def teacher_of(cell: Cell) -> Cell | None:
    """Return the cell whose teacher a static strategy takes: same fold, same seed."""
    return Cell(cell.fold, TEACHER, cell.seed) if is_static(cell.strategy) else None


def training_arguments(settings: Settings, cell: Cell, data_dir: str, output_dir: str) -> list[str]:
    """Return the training arguments of a cell; paths start with `data_dir` and `output_dir` as they are given."""
    return [*_plain_arguments(settings, cell), *_path_arguments(settings, cell, data_dir, output_dir)]


def shell_command(settings: Settings, cell: Cell) -> str:
    """Return the command of a cell for a shell, relative to $DATA and $OUTPUT."""
    plain = [shlex.quote(argument) for argument in _plain_arguments(settings, cell)]
    paths = [f'"{argument}"' for argument in _path_arguments(settings, cell, "$DATA", "$OUTPUT")]
    threads = f"OMP_NUM_THREADS={settings.threads} MKL_NUM_THREADS={settings.threads}"
    return " ".join([threads, "python -m nemo_codert.cli.train", *plain, *paths])


def _plain_arguments(settings: Settings, cell: Cell) -> list[str]:
    return [
        f"--config-name={settings.config_name}",
        f"strategy={cell.strategy}",
        *settings.overrides,
        *settings.strategy_overrides.get(cell.strategy, ()),
        f"trainer.max_steps={settings.max_steps}",
        f"seed={cell.seed}",
        f"exp_manager.name={cell.strategy}",
        "+exp_manager.version=run",
    ]


def _path_arguments(settings: Settings, cell: Cell, data_dir: str, output_dir: str) -> list[str]:
    fold = settings.folds[cell.fold]
    root = data_dir if fold.folder == "." else f"{data_dir}/{fold.folder}"
    tests = ",".join(hydra_value(f"{root}/{name}.json") for name in fold.test_sets)
    arguments = [
        f"model.train_ds.manifest_filepath={hydra_value(f'{root}/train.json')}",
        f"model.validation_ds.manifest_filepath={hydra_value(f'{root}/dev.json')}",
        f"model.test_ds.manifest_filepath=[{tests}]",
        f"model.tokenizer.dir={hydra_value(f'{root}/tokenizer')}",
        f"exp_manager.exp_dir={hydra_value(f'{output_dir}/{Path(cell.folder).parent}')}",
    ]
    if teacher := teacher_of(cell):
        weights = f"{output_dir}/{teacher.folder}/{TEACHER_WEIGHTS}"
        arguments.append(f"model.codert.teacher_checkpoint={hydra_value(weights)}")
    return arguments
