"""Stopped anywhere and resumed, a training ends with the weights of one that was never stopped, bit for bit."""

import pytest

from tests.training.resume_runs import differences, random_pair, stopped, train


@pytest.mark.parametrize("loader", ["lhotse", "classic"])
def test_a_resumed_training_ends_like_one_that_never_stopped(make_config, manifest, tmp_path, loader):
    cfg = random_pair(make_config, manifest, loader)
    whole = train(cfg, tmp_path / "whole")
    assert stopped(cfg, tmp_path / "parts", lambda hook, step: (hook, step) == ("batch_start", 4), every=1)
    resumed = train(cfg, tmp_path / "parts", seed=9)
    assert not differences(whole, resumed)
    assert resumed.diary.losses == whole.diary.losses[4:]
    assert resumed.diary.utterances == whole.diary.utterances[4:] and all(map(len, whole.diary.utterances))
