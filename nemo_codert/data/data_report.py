"""Report on every manifest of a run: utterances used, those not used and why, as `data_report.json` and as a table.

Imports screening.py and manifest.py only, neither torch nor NeMo.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_codert.data.screening import Screening, count_by, name_of
from nemo_codert.files.atomic import whole_file

FILE = "data_report.json"
EXAMPLES = 3
LOW_RATE = "below the model's sample rate, upsampled"
UNLABELLED = "without transcript: trains the terms that need none"
UNSPELLED = "transcript with characters that the tokenizer lacks"
NOT_CHECKED = "not a plain manifest: not checked"


class DataReport:
    """Outcome of the screening of each manifest of a run.

    Example:
        >>> report = DataReport()
        >>> report.add("train_ds", "train.json", Screening(usable=[{"audio_filepath": "a.wav"}]))
        >>> print(report.table())
          section   utterances  what        such as
          train_ds           1  used, of 1  train.json
    """

    def __init__(self) -> None:
        self.manifests: list[dict[str, Any]] = []

    def add(self, section: str, manifest: str, screening: Screening) -> None:
        """Add the outcome of one manifest.

        Args:
            section: of the config that names the manifest, such as `train_ds`.
            manifest: its path.
            screening: of `nemo_codert.data.screen_manifest`.
        """
        notices = [
            *_groups(screening.noticed, "notice"),
            *_group(UNLABELLED, screening.unlabelled),
            *_group(LOW_RATE, screening.low_rate),
            *_group(UNSPELLED, screening.unspelled),
        ]
        self.manifests.append(
            {
                "section": section,
                "manifest": str(manifest),
                "utterances": screening.total,
                "usable": len(screening.usable),
                "unlabelled": len(screening.unlabelled),
                "decoded": screening.decoded,
                "dropped": _groups(screening.dropped, "reason"),
                "left_out": _groups(screening.outside, "reason"),
                "noticed": notices,
            }
        )

    def add_unchecked(self, section: str) -> None:
        """Add a section that is not of plain manifests."""
        self.manifests.append({"section": section, "manifest": None, "noticed": [{"reason": NOT_CHECKED}]})

    def write(self, folder: Path) -> Path:
        """Write `data_report.json` into a run's folder, whole or not at all, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder / FILE, {"manifests": self.manifests, "loading": None})

    def table(self) -> str:
        """Return a table with one line for each manifest and reason: number of utterances and the first of them."""
        rows = [("section", "utterances", "what", "such as")]
        for each in self.manifests:
            if each["manifest"] is None:
                rows.append((each["section"], "", NOT_CHECKED, ""))
                continue
            used = f"used, of {each['utterances']}"
            rows.append((each["section"], str(each["usable"]), used, Path(each["manifest"]).name))
            for kind, groups in (("dropped", "dropped"), ("left out", "left_out"), ("used, but", "noticed")):
                rows += [
                    ("", str(group["count"]), f"{kind}: {group['reason']}", _short(group["examples"][0]))
                    for group in each[groups]
                ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return "\n".join(lines)


def add_loading(folder: Path, counts: dict[str, int]) -> None:
    """Add the counts of the loading in training to the report in a run's folder, if there is one."""
    if (folder / FILE).is_file():
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        _write(folder / FILE, {**content, "loading": counts})


def _write(path: Path, content: dict[str, Any]) -> Path:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _groups(entries: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    entries = list(entries)
    return [
        group
        for value in count_by(entries, key)
        for group in _group(value, [entry for entry in entries if entry[key] == value])
    ]


def _group(reason: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not entries:
        return []
    return [{"reason": reason, "count": len(entries), "examples": [name_of(entry) for entry in entries[:EXAMPLES]]}]


def _short(name: str) -> str:
    return Path(name).name if "/" in name else name
