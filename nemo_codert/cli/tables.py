"""Tables that commands print: text in columns, the same on a terminal and in a log file."""

from collections.abc import Collection, Sequence


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return rows of cells in columns under their names.

    Args:
        columns: names, in the first line.
        rows: one sequence of cells each, as many as there are names.
        left: places of the columns that are flush left; the others, figures, are flush right.

    Returns:
        Lines without trailing blanks, two blanks between columns.

    Example:
        >>> print(format_table(("set", "words", "file"), [("dev", "7", "a"), ("test_all", "120", "b")], left=(0, 2)))
        set       words  file
        dev           7  a
        test_all    120  b
    """
    table = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    places = range(len(columns))
    lines = [
        "  ".join(row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in places) for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> None:
    """Print a title and the table below it; arguments as `format_table`."""
    print(f"{title}\n{format_table(columns, rows, left)}")
