"""The table, the CSV and the plots of a benchmark, from made-up rows."""

import csv

import pytest

from nemo_codert.benchmark.measure import PeakMemory
from nemo_codert.benchmark.table import (
    CostRow,
    Curve,
    Finding,
    curves,
    describe_machine,
    format_growth,
    format_table,
    plot_costs,
    write_csv,
)


def row(name: str, vocabulary: int, seconds: list[float], **others) -> CostRow:
    sizes = {"batch": 2, "frames": 5, "tokens": 3, "vocabulary": vocabulary}
    return CostRow(part="loss", setting=f"V {vocabulary}", name=name, sizes=sizes, seconds=seconds, **others)


def test_the_table_groups_rows_and_shows_medians_rounds_ratios_and_megabytes():
    memory = PeakMemory(3_000_000, 4_500_000)
    rows = [
        row("ours", 16, [0.1, 0.3, 0.2], ratio=2.0, ratio_to="floor", memory=memory, held_bytes=1_000_000),
        row("theirs", 16, [1.0], ratio=10.0, ratio_to="floor", memory=PeakMemory(None, 2_000_000)),
        row("ours", 32, [0.4]),
    ]
    lines = format_table(rows).splitlines()
    assert [line for line in lines if line.startswith("loss")] == ["loss: V 16   (x: of floor)", "loss: V 32"]
    first, second = lines[3].split(), lines[4].split()
    assert first == ["ours", "0.2", "0.1", "0.3", "3", "2", "3.0", "4.5", "1.0"]
    assert second == ["theirs", "1", "1", "1", "1", "10", "-", "2.0", "-"]


def test_the_csv_has_one_line_a_row_and_one_column_a_size(tmp_path):
    rows = [
        row("ours", 16, [0.1, 0.3, 0.2], ratio=2.0, ratio_to="floor", memory=PeakMemory(30, 40), held_bytes=10),
        CostRow("step", "tiny", "tandem", {"batch": 4, "extra": 7}, [1.0]),
    ]
    with write_csv(rows, tmp_path / "benchmark.csv", "cpu", threads=2).open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (
        list(first)
        == (
            "part setting implementation batch frames tokens vocabulary extra device threads rounds seconds_median "
            "seconds_min seconds_max ratio ratio_to peak_bytes resident_bytes held_bytes"
        ).split()
    )
    assert first["implementation"] == "ours" and first["vocabulary"] == "16" and first["extra"] == ""
    assert [first[f"seconds_{name}"] for name in ("median", "min", "max")] == ["0.2", "0.1", "0.3"]
    assert (first["peak_bytes"], first["resident_bytes"], first["held_bytes"]) == ("30", "40", "10")
    assert (second["batch"], second["extra"], second["frames"], second["peak_bytes"]) == ("4", "7", "", "")
    assert (second["device"], second["threads"], second["rounds"]) == ("cpu", "2", "1")


@pytest.mark.parametrize(
    "finding, met",
    [
        (Finding("x", 2.0, at_most=2.5), True),
        (Finding("x", 3.0, at_most=2.5), False),
        (Finding("x", 0.9, at_least=0.9), True),
        (Finding("x", 0.8, at_least=0.9), False),
        (Finding("x", 0.8), None),
    ],
)
def test_a_finding_is_held_against_its_target_and_says_so(finding, met):
    assert finding.met is met
    verdict = {True: ", met", False: ", NOT MET", None: "x"}[met]
    assert str(finding).endswith(verdict) and ("wanted" in str(finding)) == (met is not None)


def test_curves_run_over_a_size_or_over_the_cells_of_the_lattice():
    rows = [row("a", size, [size / 10], memory=PeakMemory(size)) for size in (32, 16)] + [row("b", 16, [2.0])]
    assert curves(rows, "vocabulary") == [Curve("a", [16, 32], [1.6, 3.2], [16, 32]), Curve("b", [16], [2.0])]
    assert curves(rows[:1], "cells") == [Curve("a", [30], [3.2], [32])]


def test_growth_is_printed_for_three_sizes_or_more_and_memory_where_measured():
    sizes = [10, 20, 40]
    text = format_growth(
        [Curve("linear", sizes, [1.0, 2.0, 4.0], [100, 100, 100]), Curve("short", [10, 20], [1.0, 2.0])], "V"
    )
    assert "seconds against V" in text and "peak bytes against V" in text and "short" not in text
    assert "size^1.00" in text and "0.1 s x size" in text and "100 B + " in text
    assert format_growth([Curve("short", [10, 20], [1.0, 2.0])], "V") == ""


@pytest.mark.parametrize("peaks", [None, [100, 200]])
def test_plots_are_pictures_with_and_without_memory(tmp_path, peaks):
    path = plot_costs([Curve("a", [1, 2], [1.0, 2.0], peaks)], "V", tmp_path / "plot.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_machine_is_described_with_cores_threads_and_versions():
    import torch

    text = describe_machine("cpu", threads=3)
    assert "3 torch threads" in text and f"torch {torch.__version__}" in text
    assert all(name in text for name in ("cores", "nemo_toolkit 3", "numba", "python"))
