"""Timing in turns, peak memory with known answers, fits of known laws; table, CSV and plots from made-up rows."""

import csv
import os

import pytest
import torch

from nemo_codert.benchmark.additive_loss import FLOOR, NEMO, OURS, LossCase, LossShape
from nemo_codert.benchmark.measure import (
    MeasureSettings,
    PeakMemory,
    growth,
    measure,
    paired_ratio,
    peak_memory,
    peak_memory_in_own_process,
    time_in_turns,
)
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

# ---- measured -------------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000


def test_runs_take_turns_and_a_slow_one_stops_early():
    calls = []
    runs = {name: lambda name=name: calls.append(name) or name.upper() for name in ("a", "b")}
    seconds, first = time_in_turns(runs, {"a": 3, "b": 1})
    assert calls == ["a", "b", "a", "b", "a", "a"]  # the first pair is not counted
    assert [len(seconds[name]) for name in "ab"] == [3, 1] and min(map(min, seconds.values())) >= 0
    assert first == {"a": "A", "b": "B"}


def test_the_device_is_waited_for_before_and_after_every_call():
    events = []
    time_in_turns({"a": lambda: events.append("run")}, {"a": 1}, lambda: events.append("wait"))
    assert events == ["wait", "run", "wait"] * 2


def test_ratios_are_taken_round_by_round():
    # The second round met a busy machine: a ratio of medians would be 2.5.
    assert paired_ratio([[2.0, 20.0, 2.0]], [[1.0, 10.0, 1.0]]) == 2.0
    assert paired_ratio([[1.0, 1.0], [2.0, 2.0]], [[6.0]]) == 0.5  # the rounds that all took part in


def known_allocations() -> None:
    """8 MB, then 16 more; without the first, 4 more: 24 MB at the worst moment."""
    first = torch.ones(2 * MEGABYTE)
    second = torch.ones(4 * MEGABYTE)
    del first
    third = torch.ones(MEGABYTE)
    del second, third


def test_peak_memory_of_known_allocations():
    memory = peak_memory(known_allocations)
    assert memory.allocator == 24 * MEGABYTE
    if memory.resident is not None:  # pages of 4 kB, and what interpreter, profiler and heap do meanwhile
        assert -MEGABYTE < memory.resident - memory.allocator < 16 * MEGABYTE


def test_resident_memory_also_counts_what_torch_does_not_allocate():
    import numpy as np

    memory = peak_memory(lambda: np.ones(4 * MEGABYTE).sum())
    assert memory.allocator < MEGABYTE
    assert memory.resident is None or -MEGABYTE < memory.resident - 32 * MEGABYTE < 16 * MEGABYTE


def test_without_a_record_the_kernels_figure_is_the_peak():
    memory = peak_memory(known_allocations, record=False)
    assert memory.allocator is None and memory.peak == memory.resident
    assert PeakMemory(3, 5).peak == 3


def test_a_fresh_process_measures_the_floor_as_it_can_be_counted():
    shape = LossShape(2, 40, 9, 500)
    memory = peak_memory_in_own_process(LossCase(FLOOR, shape), threads=1)
    # Two exponentials, two gradients, the normaliser: float32 [B, T, V+1] and [B, U+1, V+1] twice, [B, T, U+1].
    assert memory.allocator == 4 * 2 * (2 * (40 + 10) * 501 + 40 * 10)


class Fatal:
    """A case that ends the process which unpickles it, as the kernel does when memory runs out."""

    def __reduce__(self):
        return os._exit, (9,)


class Greedy:
    """Asks a GPU for more than it has."""

    def prepare(self):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_exception_in_the_fresh_process_is_raised_here(forking):
    with pytest.raises(ValueError, match="not enough values|unpack"):
        peak_memory_in_own_process(LossCase("unheard of", LossShape(1, 2, 1, 4)))


def test_a_process_that_the_gpu_had_no_memory_for_gives_none(forking):
    assert peak_memory_in_own_process(Greedy()) is None


def test_a_process_that_was_killed_gives_none(forking):
    assert peak_memory_in_own_process(Fatal()) is None


def test_measuring_gives_rounds_first_results_and_memory_where_asked(forking):
    cases = [LossCase(name, LossShape(2, 6, 3, 8)) for name in (OURS, NEMO)]
    measured = measure(cases, MeasureSettings(rounds=3, slow_rounds=1, memory=False), "test")
    assert [len(measured[name].seconds) for name in (OURS, NEMO)] == [3, 1]
    assert float(measured[OURS].first) == pytest.approx(float(measured[NEMO].first), rel=1e-5)
    assert measured[OURS].memory is None
    only_ours = measure(cases[:1], MeasureSettings(rounds=1, threads=1), "test")
    assert only_ours[OURS].memory.allocator > 0


def test_growth_finds_known_laws():
    sizes = [1, 2, 4, 8]
    power = growth(sizes, [3 * size**1.5 for size in sizes])
    assert (power.exponent, power.exponent_r2) == (pytest.approx(1.5), pytest.approx(1.0))
    line = growth(sizes, [5 + 2 * size for size in sizes])
    assert (line.constant, line.slope, line.linear_r2) == (pytest.approx(5), pytest.approx(2), pytest.approx(1))
    assert line.exponent < 1
    assert growth(sizes, [1.0, 3.0, 1.0, 3.0]).linear_r2 < 0.5
    assert growth(sizes, [2.0] * 4).linear_r2 == 1.0


@pytest.mark.parametrize("sizes, costs", [([1, 2], [1, 2]), ([1, 2, 2], [1, 2, 2]), ([1, 2, 3], [0, 1, 2])])
def test_growth_needs_three_sizes_and_costs(sizes, costs):
    with pytest.raises(ValueError, match="three different sizes"):
        growth(sizes, costs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_known_allocations_on_a_gpu():
    def run() -> None:
        first = torch.ones(2 * 2**20, device="cuda")
        second = torch.ones(4 * 2**20, device="cuda")
        del first, second

    assert peak_memory(run, "cuda") == PeakMemory(24 * 2**20)


# ---- printed and written --------------------------------------------------------------------------------------------


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
