"""The YAML files that a command line chooses, found as Hydra would find them, and names that are not there.

A folder of the user's (`--config-dir`) comes before the shipped one, so that its files inherit from the shipped
configs and may also replace one of them. May import omegaconf only.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_codert.config.criteria import OLDER_KEYS, ONE_TERM, term_keys
from nemo_codert.config.hydra_text import hydra_value
from nemo_codert.config.nearest import nearest
from nemo_codert.config.shipped import conf_folder
from nemo_codert.config.trainer_keys import LOGGER_PACKAGES, MANAGER_KEYS, TRAINER_KEYS, missing_logger

DEFAULT_NAME = "fsdd"
BASE = "base"  # what the shipped configs share; it lacks the encoders
FILE_PLACE = "file://"
TERMS, STUDENT = "model.codert.distillation.", "model.student."
# Option of a command that trains -> the override that it stands for.
RUN_OPTIONS = {"--resume": "++resume.unfinished=continue", "--new": "++resume.unfinished=new"}


@dataclass(frozen=True)
class ConfigSearch:
    """A config, and the folders in which Hydra looks for it and for all that it inherits from.

    name: of the config. places: folders in the order of search. overrides: of the command line. options: the remaining
    words of the command line.
    """

    name: str
    places: tuple[Path, ...]
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()

    def file(self, name: str) -> Path | None:
        """Return the first file of that name, None where no folder has one."""
        paths = [place / f"{name}.yaml" for place in self.places]
        return next((path for path in paths if path.is_file()), None)

    def primary(self) -> Path:
        """Return the folder that holds the config; the first one where none does."""
        file = self.file(self.name)
        return file.parents[self.name.count("/")] if file else self.places[0]

    def names(self, group: str = "") -> list[str]:
        """Return the names of the files in a subfolder, such as `strategy`, of any of the folders."""
        return sorted({path.stem for place in self.places for path in (place / group).glob("*.yaml")})

    def has_group(self, group: str) -> bool:
        """Return whether any of the folders has this subfolder."""
        return any((place / group).is_dir() for place in self.places)

    def where(self) -> str:
        """Return the folders as a message has them."""
        return " and ".join(map(str, self.places))

    def hydra_arguments(self) -> list[str]:
        """Return the command line for Hydra.

        Hydra itself would look into `--config-dir` last, and a copy of a shipped config there would never be read.
        The arguments that are returned name the folder of the config as the primary one, and the others in its search
        path.
        """
        options = ["--config-path", str(self.primary()), "--config-name", self.name, *self.options]
        return [*options, *self.hydra_overrides()]

    def hydra_overrides(self) -> list[str]:
        """Return the overrides with one that adds all but the primary folder to Hydra's search path."""
        others = [place for place in self.places if place != self.primary()]
        if not others or any(override_key(override) == "hydra.searchpath" for override in self.overrides):
            return [*self.overrides]
        places = ",".join(hydra_value(f"{FILE_PLACE}{place}") for place in others)
        return [*self.overrides, f"hydra.searchpath=[{places}]"]


def config_search(arguments: Sequence[str], default: str = DEFAULT_NAME) -> ConfigSearch:
    """Read the options of Hydra that choose a config, and `--resume` and `--new`, which stand for overrides.

    Args:
        arguments: a command line without the program's name: `--config-dir`, `--config-path`, `--config-name`, Hydra's
            other options and overrides.
        default: name of the config where none is given.

    Raises:
        ValueError: a folder that does not exist, or both `--resume` and `--new`.

    Example:
        >>> search = config_search(["--config-name", "quickstart", "seed=1"])
        >>> search.name, search.overrides
        ('quickstart', ('seed=1',))
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-name", "-cn", default=default)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    chosen = [option for option in RUN_OPTIONS if option in arguments]
    if len(chosen) > 1:
        raise ValueError("--resume continues a run and --new starts another: give one of them")
    known, remaining = parser.parse_known_args([RUN_OPTIONS.get(word, word) for word in arguments])
    overrides = tuple(part for word in remaining if is_override(word) for part in _replacing(term_override(word)))
    options = tuple(word for word in remaining if not is_override(word))
    given = {"--config-path": known.config_path, "--config-dir": known.config_dir}
    places = [_folder(option, name) for option, name in given.items() if name is not None]
    name = known.config_name.removesuffix(".yaml")
    places += _further_places(name, places, overrides)
    if conf_folder() not in places:
        places.append(conf_folder())
    return ConfigSearch(name, tuple(places), overrides, options)


def with_additions(search: ConfigSearch) -> ConfigSearch:
    """Return the search with overrides that add what the files lack, where the key is one that a run takes.

    A stock NeMo YAML has no `model.codert`, few keys of `trainer` and `exp_manager`, and no `strategy` among its
    defaults. Hydra refuses such a key without a `+`; here known keys need none.

    Args:
        search: of a command line.

    Returns:
        The search with `++` before known keys that no file has, and `+` before a `strategy` that no file chooses.

    Raises:
        ValueError: a file that cannot be read, or a strategy that is not there.

    Example:
        >>> with_additions(config_search(["trainer.limit_train_batches=10", "trainer.max_step=3"])).overrides
        ('++trainer.limit_train_batches=10', 'trainer.max_step=3')
    """
    file = search.file(search.name)
    if file is None or search.name == BASE:
        return search
    walk, shipped = _Walk(search), _Walk(ConfigSearch(BASE, (conf_folder(),), ()))
    walk.check_options()  # a strategy that is not there is named before the files that inherit from it
    walk.visit(search.name, file)
    shipped.visit(BASE, conf_folder() / f"{BASE}.yaml")

    def added(override: str) -> str:
        key = override_key(override)
        if "=" not in override or override.startswith(("+", "~")):
            return override
        if key in walk.choices:
            return override if key in walk.groups else f"+{override}"
        return f"++{override}" if key not in walk.keys and _is_known(key, shipped.keys, walk.keys) else override

    return replace(search, overrides=tuple(map(added, search.overrides)))


def _is_known(key: str, shipped: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Return whether a run takes a dotted key, whatever the files of a config hold.

    A block of the student's has the keys of the config's own block of that name.
    """
    block, _, rest = key.partition(".")
    known = {"trainer": TRAINER_KEYS, "exp_manager": MANAGER_KEYS}.get(block)
    if known is not None:
        return rest.partition(".")[0] in known
    if key.startswith(STUDENT) and f"model.{key.removeprefix(STUDENT)}" in own:
        return True
    is_ours = key.startswith(("model.codert.", STUDENT)) or block in ("train", "seed", "resume")
    return is_ours and key in shipped


def check_names(search: ConfigSearch) -> None:
    """Check that the config, all that it inherits from, every key that is overridden, and the loggers are there.

    Raises:
        ValueError: a name or key that is not there, with the nearest that is and the folders that were searched, or a
            logger whose package is not installed.
    """
    if search.file(search.name) is None:
        names = [name for name in search.names() if name != BASE]
        raise ValueError(
            f"there is no config {search.name!r}: did you mean {nearest(search.name, names)!r}? There are "
            f"{', '.join(names)} (looked in {search.where()})"
        )
    walk = _Walk(search)
    walk.check_options()
    walk.visit(search.name, search.file(search.name))
    walk.check_groups()
    walk.check_keys()
    walk.check_loggers()


@dataclass
class _Walk:
    """The files that a config consists of, in Hydra's terms its defaults list.

    choices: group -> the option that the command line chooses. groups: that the files name. keys: dotted key -> value
    of all files; None for what a `+` of the command line adds. complete: whether `keys` has every key.
    """

    search: ConfigSearch
    choices: dict[str, str] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    keys: dict[str, Any] = field(default_factory=dict)
    visited: set[Path] = field(default_factory=set)
    complete: bool = True

    def __post_init__(self) -> None:
        for override in self.search.overrides:
            group = override_key(override)
            if "=" in override and self.search.has_group(group):
                self.choices[group] = override.partition("=")[2]

    def visit(self, name: str, path: Path | None, package: str = "") -> None:
        """Read a file and those that it inherits from."""
        if path is None or path in self.visited:
            return
        self.visited.add(path)
        content, text = _content(path)
        group = name.rpartition("/")[0]
        if header := re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE):
            package = "" if header[1] == "_global_" else package
            self.complete &= header[1] == "_global_"
        self._add_keys(content, package)
        for entry in content.get("defaults") or ():
            for target, own_package, is_optional in self._targets(entry, group):
                found = self.search.file(target)
                if found is None and not is_optional:
                    names = self.search.names(target.rpartition("/")[0])
                    near = f": did you mean {nearest(target.rpartition('/')[2], names)!r}?" if names else ""
                    raise ValueError(
                        f"{path} inherits from {target!r}, which is not there{near} (looked in {self.search.where()})"
                    )
                self.visit(target, found, own_package)

    def _targets(self, entry: Any, group: str) -> list[tuple[str, str, bool]]:
        """Return name, package and whether it may be missing, of each file that a defaults entry stands for."""
        if isinstance(entry, str):
            name, _, package = entry.partition("@")
            self.complete &= not package
            if name == "_self_" or "${" in name:
                return []
            return [(_below(group, name), group.replace("/", "."), False)]
        key, value = next(iter(entry.items()))
        words = str(key).split()
        own, _, package = words[-1].partition("@")
        own = _below(group, own)
        if own.split("/")[0] == "hydra":
            return []
        self.complete &= not package
        self.groups.add(own)
        value = self.choices.get(own, value)
        options = value if isinstance(value, list) else [value]
        plain = [str(option) for option in options if option is not None and re.fullmatch(r"[\w./-]+", str(option))]
        return [(f"{own}/{option}", own.replace("/", "."), "optional" in words) for option in plain]

    def _add_keys(self, node: dict[str, Any], prefix: str) -> None:
        for end in range(len(parts := prefix.split(".") if prefix else [])):
            self.keys.setdefault(".".join(parts[: end + 1]), {})
        for key, value in node.items():
            if prefix or key != "defaults":
                path = f"{prefix}.{key}" if prefix else str(key)
                if isinstance(value, dict):
                    self.keys[path] = {}
                    self._add_keys(value, path)
                elif not isinstance(self.keys.get(path), dict):
                    self.keys[path] = value

    def check_options(self) -> None:
        """Check that the files are there that the command line chooses, such as strategy=static."""
        for group, option in self.choices.items():
            names = self.search.names(group)
            if re.fullmatch(r"[\w.-]+", option) and option != "null" and option not in names:
                raise ValueError(
                    f"there is no {group} {option!r}: did you mean {nearest(option, names)!r}? There are "
                    f"{', '.join(names)} (looked in {self.search.where()})"
                )

    def check_groups(self) -> None:
        """Check that the files let the command line choose."""
        for override in self.search.overrides:
            group = override_key(override)
            if group in self.choices and group not in self.groups and not override.startswith("+"):
                raise ValueError(
                    f"{override}: neither {self.search.file(self.search.name)} nor what it inherits from has {group} "
                    f"among its defaults. Add '- {group}: NAME' there, after _self_"
                )

    def check_keys(self) -> None:
        """Check that overridden keys exist, unless the files leave that to Hydra."""
        keys = dict(self.keys)
        for override in self.search.overrides:
            key = override_key(override)
            if override.startswith("+"):
                parts = key.split(".")
                for end in range(1, len(parts) + 1):
                    keys.setdefault(".".join(parts[:end]), None)
            elif override.startswith("~") and key in self.groups:
                continue
            elif self.complete and key not in self.choices and re.split(r"[./]", key)[0] != "hydra":
                self._check_key(key, keys)

    def check_loggers(self) -> None:
        """Check that the packages of the loggers that are switched on are installed."""
        given = {override_key(each): each.partition("=")[2] for each in self.search.overrides}
        for key in LOGGER_PACKAGES:
            is_on = str(given.get(key, self.keys.get(key))).lower() == "true"
            if is_on and (fault := missing_logger(key)):
                raise ValueError(fault)

    def _check_key(self, key: str, keys: dict[str, Any]) -> None:
        parts = key.split(".")
        known = next(end for end in range(len(parts), -1, -1) if end == 0 or ".".join(parts[:end]) in keys)
        if known == len(parts) or (known and not isinstance(keys[".".join(parts[:known])], dict)):
            return  # below a value that is not a block Hydra decides
        raise ValueError(
            f"there is no key {key!r} in config {self.search.name!r}: did you mean {nearest(key, self.keys)!r}? "
            "Write + before a key that is to be added"
        )


def term_override(override: str) -> str:
    """Return an override of `model.codert.distillation` so that Hydra lets it reach a term, any other as it is.

    A key without a term's name is one of the term `encoder`. The shipped configs have no terms, and those that a
    strategy adds do not state every key: the override adds what is not there, also a whole term.

    Example:
        >>> term_override("model.codert.distillation.weight=0.3")
        '++model.codert.distillation.encoder.weight=0.3'
        >>> term_override("model.codert.distillation.joint.nodes=occupied")
        '++model.codert.distillation.joint.nodes=occupied'
        >>> term_override("model.codert.distillation.late={at: joint}")
        '++model.codert.distillation.late={at: joint}'
    """
    key, separator, value = override.lstrip("+").partition("=")
    name, dot, own = key.removeprefix(TERMS).rpartition(".")
    own = OLDER_KEYS.get(own, own)
    if override.startswith("~") or not key.startswith(TERMS) or "." in name:
        return override
    if own not in term_keys():
        is_term = not name and (value.startswith("{") or value == "null")
        return f"++{key}{separator}{value}" if is_term else override
    return f"++{TERMS}{name or ONE_TERM}.{own}{separator}{value}"


def _replacing(override: str) -> list[str]:
    """Return an override of a term, or its layers, after one that empties them: Hydra would merge the two."""
    key, separator, value = override.partition("=")
    is_mapping = f"{key}.".startswith((f"++{TERMS}", TERMS)) and value.startswith("{")
    if f"{key}." == TERMS and is_mapping:
        return [f"++{key}=null", f"++{override}"]
    return [f"{key}{separator}null", override] if is_mapping else [override]


def is_override(word: str) -> bool:
    """Return whether a word of a command line is an override of Hydra's, not an option."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def override_key(override: str) -> str:
    """Return the key of an override: `+a.b=1` -> `a.b`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _below(group: str, name: str) -> str:
    return name.lstrip("/") if name.startswith("/") or not group else f"{group}/{name}"


def _folder(option: str, name: str) -> Path:
    folder = Path(name).absolute()
    if not folder.is_dir():
        there = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = nearest(folder.name, there)
        raise ValueError(f"{option} is {name!r}: no such folder" + (f", did you mean {near!r}?" if near else ""))
    return folder


def _further_places(name: str, places: Sequence[Path], overrides: Sequence[str]) -> list[Path]:
    """Return the folders of hydra.searchpath, of the command line or of the config itself."""
    given = [override.partition("=")[2] for override in overrides if override_key(override) == "hydra.searchpath"]
    if given:
        entries = [word.strip(" '\"") for word in given[-1].strip(" []").split(",")]
    else:
        path = next((place / f"{name}.yaml" for place in places if (place / f"{name}.yaml").is_file()), None)
        hydra = _content(path)[0].get("hydra") if path else None
        entries = (hydra or {}).get("searchpath") or [] if isinstance(hydra, dict) else []
    return [Path(str(entry).removeprefix(FILE_PLACE)) for entry in entries if str(entry).startswith((FILE_PLACE, "/"))]


def _content(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, wanted a mapping of keys")
    return content, text
