"""Texts that go to Hydra and come from it: values on its command line, and a config that it does not find."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


def hydra_value(path: str | Path) -> str:
    """Return a path as a value on Hydra's command line, with any characters in it.

    Example:
        >>> print(hydra_value("a (b).json"))
        'a (b).json'
    """
    # Hydra unescapes backslashes only before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(path)) + "'"


def missing_config(error: Exception, folders: Sequence[str | Path]) -> str:
    """Return one sentence on a config that does not exist: its name, where it was looked for, the nearest name.

    Args:
        error: Hydra's MissingConfigException.
        folders: that were searched.
    """
    name = str(error.missing_cfg_file).removesuffix(".yaml")
    parent = re.match(r"In '([^']+)': ", str(error))
    needed = f"config {parent[1]!r} needs {name!r}" if parent else f"--config-name is {name!r}"
    group = Path(name).parent
    names = {(group / path.stem).as_posix() for folder in folders for path in (Path(folder) / group).glob("*.yaml")}
    nearest = get_close_matches(name, sorted(names), 1)
    places = " or in ".join(map(str, folders))
    return f"{needed}, but there is no {name}.yaml in {places}" + (
        f". Did you mean {nearest[0]!r}?" if nearest else ""
    )
