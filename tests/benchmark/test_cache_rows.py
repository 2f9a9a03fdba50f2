"""Stored targets in the benchmark: what the rows run, at tiny sizes, and what the findings compare."""

import pytest
import torch

from nemo_codert.benchmark import cached_targets
from nemo_codert.benchmark.cached_targets import (
    CACHED,
    CACHING,
    CACHING_PRIOR,
    ENCODER,
    LONE,
    OPENING,
    TargetCase,
    target_rows,
    write_empty_targets,
)
from nemo_codert.benchmark.measure import Measured, MeasureSettings
from nemo_codert.benchmark.training_step import StepSettings
from nemo_codert.data.target_cache import TargetCache
from nemo_codert.data.target_writer import TargetWriter

TINY = StepSettings(2, 0.5, 3, 64, teacher=(2, 32), student=(1, 16), pred_hidden=20, joint_hidden=24)


@pytest.fixture
def prepared(tmp_path):
    return lambda name: TargetCase(name, TINY, str(tmp_path)).prepare()


@pytest.mark.parametrize("name", [CACHING, CACHING_PRIOR])
def test_caching_writes_the_targets_of_the_audio_that_the_encoder_gets(prepared, monkeypatch, name):
    encoded = prepared(ENCODER)()
    assert encoded.shape == (cached_targets.BATCHES, TINY.batch, 32, 7)
    written, write = [], TargetWriter.write
    monkeypatch.setattr(TargetWriter, "write", lambda *args: written.extend(args[2]) or write(*args))
    prepared(name)()
    assert len(written) == cached_targets.BATCHES * TINY.batch and {len(each.frames) for each in written} == {7}
    assert {each.frames["ids"].shape for each in written} == {(7, 8)}
    assert all(0 < each.frames["probabilities"].sum(-1).min() <= 1.001 for each in written)


def test_both_steps_train_the_same_student_and_the_cached_one_reads_its_targets(prepared, monkeypatch):
    read, names = TargetCache.read, []
    monkeypatch.setattr(TargetCache, "read", lambda cache, name: names.append(name) or read(cache, name))
    steps = {name: prepared(name) for name in (LONE, CACHED)}
    losses = {name: [step().item(), step().item()] for name, step in steps.items()}
    assert names == ["0.wav", "1.wav"] * 2
    assert all(loss > 0 for own in losses.values() for loss in own)
    assert losses[CACHED][0] > losses[LONE][0]  # the term comes on top of one and the same loss


def test_empty_targets_of_any_number_of_hours_are_opened_as_whole_ones(tmp_path):
    write_empty_targets(tmp_path, utterances=2000)
    cache = TargetCache(tmp_path)
    assert len(cache) == 2000 and len(cache.header.shards) == 14  # 24,000 s
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == pytest.approx(2000 * (151 * 32 + 48), rel=1e-3)
    assert [int(cache._entries["frames"].min()), cache.header.frame_bytes] == [151, 32]


def measured_in_place_of(monkeypatch, seconds: dict[str, list[float]]) -> list[bool]:
    """Seconds in place of measurements; returns a list that gets whether memory was wanted, group by group."""
    memory = []

    def measure(cases, settings, title):
        memory.append(settings.memory)
        return {case.name: Measured(seconds[case.name], 1.5e9) for case in cases}

    monkeypatch.setattr(cached_targets, "measure", measure)
    return memory


SECONDS = {
    ENCODER: [1.9, 1.0],
    CACHING: [2.0, 1.0],
    CACHING_PRIOR: [2.5, 1.25],
    LONE: [1.0],
    CACHED: [1.2],
    OPENING: [0.2, 0.3, 0.4],
}


def test_the_findings_hold_caching_against_the_encoder_and_the_step_against_the_lone_students(monkeypatch):
    memory = measured_in_place_of(monkeypatch, SECONDS)
    rows, findings = target_rows(TINY, "cpu", MeasureSettings())
    assert memory == [False, True, False] and {row.part for row in rows} == {"cache"}
    assert [row.ratio for row in rows] == pytest.approx(
        [1.0, (2 / 1.9 + 1) / 2, (2.5 / 1.9 + 1.25) / 2, 1.0, 1.2, None]
    )
    assert [finding.value for finding in findings] == pytest.approx([0.975, 0.78, 1.2, 1.5, 0.3])
    assert [finding.met for finding in findings] == [True, None, False, True, True]


def test_the_speeds_have_no_target_on_a_gpu(monkeypatch):
    measured_in_place_of(monkeypatch, SECONDS)
    _, findings = target_rows(TINY, "cuda", MeasureSettings())
    assert [finding.met for finding in findings] == [None, None, None, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [ENCODER, CACHING, CACHING_PRIOR, LONE, CACHED])
def test_the_rows_run_on_a_gpu(name, tmp_path):
    TargetCase(name, TINY, str(tmp_path), "cuda").prepare()()
