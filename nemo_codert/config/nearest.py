"""The nearest existing name to one that does not exist, for messages.

Imports the standard library only.
"""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like another one.

    Args:
        name: as a user wrote it.
        names: those that exist.

    Returns:
        One of `names`, None where there are none.

    Example:
        >>> nearest("trian", ["train", "check"])
        'train'
    """
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)), None)
