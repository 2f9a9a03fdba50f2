"""Strategies of a comparison: composed configs, twins without distillation, and what a training needs first.

A config is flat here: dotted key -> value, references unresolved. Imports hydra and omegaconf, not NeMo.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.criteria import named
from nemo_codert.config.nearest import nearest
from nemo_codert.config.search import check_names, config_search, override_key, with_additions
from nemo_codert.config.shipped import conf_folder
from nemo_codert.config.teachers import HEAD_LOGITS

TWIN = "-twin"  # suffix of a strategy's twin: the same without distillation
VARIANT = "@"  # NAME@LABEL is strategy NAME with overrides of its own
CORPUS = "{corpus}"  # placeholder of the fold's folder in an override of one strategy
ANY_CORPUS = "corpus-of-the-fold"  # stands for that folder in a composed config
TERMS = "model.codert.distillation"
CHECKPOINT = "model.codert.teacher_checkpoint"
TARGETS = "model.codert.teacher_cache"
FIRST_STEP = "model.codert.student_loss_from_step"
# An override of a key in this block is for the strategies with that key alone.
BLOCK_OF_SOME_STRATEGIES = "model.codert.student_hears"
MISSING = "???"


def composed(config_name: str, strategy: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the config of a strategy or of a twin as training would get it.

    A strategy without terms has no key below `model.codert.distillation`.

    Raises:
        ValueError: no such config, strategy or key, or a twin of a strategy that does not distil.
    """
    overrides = [override.replace(CORPUS, ANY_CORPUS) for override in overrides]
    config = dict(_composed(config_name, plain_name(strategy), tuple(overrides)))
    if is_twin(strategy):
        return dict(_composed(config_name, plain_name(strategy), (*overrides, *twin_overrides(strategy, config))))
    return config


def plain_name(strategy: str) -> str:
    """Return the strategy that a twin or a variant is made of; any other name as it is.

    Example:
        >>> plain_name("static_joint-twin"), plain_name("static@low"), plain_name("static@low-twin")
        ('static_joint', 'static', 'static')
    """
    return strategy.removesuffix(TWIN).partition(VARIANT)[0]


def is_twin(strategy: str) -> bool:
    """Return whether a strategy is another one's twin."""
    return strategy.endswith(TWIN)


def is_variant(strategy: str) -> bool:
    """Return whether a strategy is a variant, NAME@LABEL, or the twin of one."""
    return VARIANT in strategy


def own_overrides(by_strategy: Mapping[str, Sequence[str]], strategy: str) -> list[str]:
    """Return the overrides of one strategy: those of the plain one, then those of the variant.

    Example:
        >>> own_overrides({"static": ["a=1"], "static@low": ["b=2"]}, "static@low-twin")
        ['a=1', 'b=2']
    """
    names = dict.fromkeys((plain_name(strategy), strategy.removesuffix(TWIN)))
    return [override for name in names for override in by_strategy.get(name, ())]


def twin_overrides(strategy: str, config: Mapping[str, Any]) -> list[str]:
    """Return what makes a strategy its twin: weight 0 for every term, and the student's own loss from step 0.

    Everything else stays: the teacher, the student's noise, and the CTC loss of heads in the middle.

    Args:
        strategy: its name, for messages; one that is not a twin has no such overrides.
        config: of the strategy or of the twin.

    Raises:
        ValueError: the strategy has no terms.

    Example:
        >>> twin_overrides("mine-twin", {"model.codert.distillation.joint.at": "joint"})
        ['++model.codert.distillation.joint.weight=0']
    """
    if not is_twin(strategy):
        return []
    below = [key.removeprefix(f"{TERMS}.") for key in config if key.startswith(f"{TERMS}.")]
    names = dict.fromkeys(key.split(".")[0] for key in below if "." in key)
    if not names:
        raise ValueError(
            f"there is no {strategy}: {strategy.removesuffix(TWIN)} has no distillation that it could be without"
        )
    starts = [f"{FIRST_STEP}=0"] if FIRST_STEP in config else []
    return [*(f"++{TERMS}.{name}.weight=0" for name in names), *starts]


def takes_teacher(config: Mapping[str, Any]) -> bool:
    """Return whether a training takes the teacher of the comparison: a pre-trained one, and none is given."""
    given = config.get(CHECKPOINT) is not None
    return _is_pair(config) and not given and (config.get("model.codert.teacher") == "frozen" or makes_targets(config))


def makes_targets(config: Mapping[str, Any]) -> bool:
    """Return whether targets are stored before a training: the teacher is a cached one, and no targets are given."""
    return _is_pair(config) and config.get("model.codert.teacher") == "cached" and config.get(TARGETS) is None


def _is_pair(config: Mapping[str, Any]) -> bool:
    return config.get("train") == "pair"


def check_complete(strategy: str, config: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Check that a comparison has all that a strategy needs.

    Args:
        strategy: its name.
        config: of the strategy.
        baseline: config of the lone student, whose open keys the comparison sets.

    Raises:
        ValueError: a key without a value, or a teacher that has no use or is not trained here.
    """
    name = strategy.removesuffix(TWIN)
    for key, value in config.items():
        if value == MISSING and baseline.get(key) != MISSING:
            raise ValueError(f"{key} is {MISSING} for {strategy}: give it with --override {name}:{key}=VALUE")
    given = config.get(CHECKPOINT)
    if given is not None and not _reads_checkpoint(config):
        raise ValueError(
            f"{CHECKPOINT} is {given!r} for {strategy}, which takes no teacher. Give it to those that do: "
            f"--override STRATEGY:{CHECKPOINT}={given}"
        )
    if takes_teacher(config) and config.get("model.codert.teacher_logits") in HEAD_LOGITS:
        raise ValueError(
            f"{strategy} needs a teacher with a CTC head, and the comparison trains one without: give it with "
            f"--override {name}:{CHECKPOINT}=TEACHER.nemo"
        )


def _reads_checkpoint(config: Mapping[str, Any]) -> bool:
    """Return whether a teacher's checkpoint has a use: a lone student has no teacher, an ema one is its average."""
    return config.get("train") == "teacher" or (_is_pair(config) and config.get("model.codert.teacher") != "ema")


def overrides_for(config: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
    """Return those overrides for all strategies that the strategy with this config takes.

    Example:
        >>> config = {"model.codert.student_hears.spec_augment.freq_masks": 2}
        >>> overrides_for(config, ["model.codert.student_hears.noise=noise.json", "seed=1"])
        ['seed=1']
    """
    return [override for override in overrides if not needs_its_key(override) or _has(config, override_key(override))]


def needs_its_key(override: str) -> bool:
    """Return whether an override for all strategies is for those alone whose config has its key."""
    return override_key(override).startswith(f"{BLOCK_OF_SOME_STRATEGIES}.")


def _has(config: Mapping[str, Any], key: str) -> bool:
    return any(own == key or own.startswith(f"{key}.") for own in config)


@cache  # a fifth of a second each, and the lone student's is used twice
def _composed(config_name: str, strategy: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    known = sorted(path.stem for path in (conf_folder() / "strategy").glob("*.yaml"))
    if strategy not in known:
        wanted = f"wanted one of {', '.join(known)}; the nearest is {nearest(strategy, known)!r}"
        raise ValueError(f"there is no strategy {strategy!r}, {wanted}")
    GlobalHydra.instance().clear()
    try:
        search = with_additions(config_search(["--config-name", config_name, f"strategy={strategy}", *overrides]))
        check_names(search)
        with initialize_config_dir(str(conf_folder()), version_base=None):
            cfg = compose(config_name, list(search.overrides))
    except ValueError as error:
        raise ValueError(f"config {config_name!r} cannot be composed for {strategy}: {error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"config {config_name!r} cannot be composed for {strategy}: {error}") from error
    plain = OmegaConf.to_container(cfg, resolve=False)
    terms = named(plain["model"]["codert"].pop("distillation"))
    return {**dict(flat(plain)), **dict(flat(terms, f"{TERMS}."))}


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of nested blocks; an empty block is a leaf."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
