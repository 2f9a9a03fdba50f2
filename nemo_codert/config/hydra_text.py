"""Values on Hydra's command line."""

import re
from pathlib import Path


def hydra_value(path: str | Path) -> str:
    """Return a path as a value on Hydra's command line, with any characters in it.

    Example:
        >>> print(hydra_value("a (b).json"))
        'a (b).json'
    """
    # Hydra unescapes backslashes only before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(path)) + "'"
