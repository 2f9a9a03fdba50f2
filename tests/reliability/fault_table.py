"""The table of the reliability campaign: fault, times injected, survived, data lost.

    python tests/reliability/fault_table.py reliability_run

prints what the tests of that folder have recorded and keeps it there as `table.md`.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

COLUMNS = ("fault", "injected", "survived", "data lost")


@dataclass(frozen=True)
class Row:
    """One kind of fault. injected, survived: times. lost: data lost with it, in words."""

    fault: str
    injected: int
    survived: int
    lost: str


class Campaign:
    """Keeps one file for a fault of a test, so that processes of one campaign never write to the same one.

    test: name of the test that records; what several record of one fault is one row.
    """

    def __init__(self, folder: Path, test: str = "") -> None:
        self._records, self._test = folder / "records", test

    def record(self, fault: str, injected: int, survived: int, lost: str) -> None:
        """Add to a fault's row."""
        self._records.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{self._test} {fault}")
        (self._records / f"{name}.json").write_text(json.dumps(asdict(Row(fault, injected, survived, lost))) + "\n")

    def rows(self) -> list[Row]:
        """The rows of the folder by name of the fault."""
        rows: dict[str, Row] = {}
        for path in sorted(self._records.glob("*.json")):
            row = Row(**json.loads(path.read_text()))
            if row.fault in rows:
                one = rows[row.fault]
                lost = "; ".join(dict.fromkeys([*one.lost.split("; "), *row.lost.split("; ")]))
                row = Row(row.fault, one.injected + row.injected, one.survived + row.survived, lost)
            rows[row.fault] = row
        return [rows[fault] for fault in sorted(rows, key=str.lower)]


def table(rows: list[Row]) -> str:
    """The rows and their sum as a table in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {row.fault} | {row.injected} | {row.survived} | {row.lost} |" for row in rows]
    lines.append(f"| all | {sum(row.injected for row in rows)} | {sum(row.survived for row in rows)} | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    folder = Path(sys.argv[1])
    rows = Campaign(folder).rows()
    if not rows:
        print(f"{folder}: no test has recorded anything.")
        return 1
    text = table(rows)
    (folder / "table.md").write_text(text)
    print(text)
    return int(any(row.survived < row.injected for row in rows))


if __name__ == "__main__":
    sys.exit(main())
