"""Trainings stopped at every step: each part resumes from the one before, and the last ends like one whole run.

Dropout, dither, SpecAugment and shuffling are on; a seed of its own in every part shows that nothing is drawn anew.
"""

import pytest

from tests.training.resume_runs import differences, fresh, random_pair, stopped, train

pytestmark = pytest.mark.reliability
EPOCHS = {"max_steps": -1, "max_epochs": 3, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}


def in_parts(cfg, folder, where_of, **settings):
    """Train until nothing stops it any more; `where_of(n)` says where the n-th part stops. Number of stops, end."""
    for part in range(50):
        if not stopped(cfg, folder, where_of(part), seed=part, **settings):
            return part, train(cfg, folder, seed=99, **settings)
    raise AssertionError("the training never ends")


def at_step(hook: str, first: int = 1):
    """Part n stops at this hook of step first + n."""
    return lambda part: lambda name, step: (name, step) == (hook, first + part)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["lhotse", "buckets", "classic"])
def test_stopped_at_every_step(make_config, manifest, tmp_path, campaign, loader, workers):
    cfg = random_pair(make_config, manifest, loader, workers)
    whole = train(cfg, tmp_path / "whole")
    stops, end = in_parts(cfg, tmp_path / "parts", at_step("batch_start"), every=1)
    assert stops == 6 and not differences(whole, end)
    campaign.record(f"stopped at every step ({loader} loader, {workers} workers)", stops, stops, "nothing: bit-equal")


def test_a_stream_of_shards_stopped_at_every_step(make_config, manifest, tmp_path, campaign):
    cfg = random_pair(make_config, manifest, "stream")
    given = {
        "limit_train_batches": 3
    }  # an epoch by NeMo's count: the stream has no end, and the next one goes on in it
    whole = train(cfg, tmp_path / "whole", **given)
    stops, end = in_parts(cfg, tmp_path / "parts", at_step("batch_start"), every=1, **given)
    assert stops == 6 and not differences(whole, end)
    campaign.record("stopped at every step (lhotse, stream of shards)", stops, stops, "nothing: bit-equal")


def test_the_callback_does_not_change_a_run_that_is_not_stopped(make_config, manifest, tmp_path):
    for loader in ("lhotse", "classic"):
        cfg = random_pair(make_config, manifest, loader)
        runs = [train(cfg, tmp_path / f"{loader}{state}", state=state) for state in (False, True)]
        assert not differences(*runs)


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("loader", ["lhotse", "classic"])
def test_gradients_that_wait_for_their_step_are_kept(make_config, manifest, tmp_path, loader, accumulate):
    cfg = random_pair(make_config, manifest, loader)
    # Validations, and so checkpoints, at batches 4, 8, ...: some between two optimizer steps.
    given = {"accumulate_grad_batches": accumulate, "val_check_interval": 4, "max_steps": 5}
    whole = train(cfg, fresh(tmp_path / "whole"), **given)
    stops, end = in_parts(cfg, fresh(tmp_path / "parts"), at_step("batch_start", 2), **given)
    assert stops == 3 and not differences(whole, end)


@pytest.mark.parametrize("hook", ["validation", "batch_end"])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_stopped_during_validation_or_before_it(make_config, manifest, tmp_path, hook, every):
    cfg = random_pair(make_config, manifest, "lhotse")
    whole = train(cfg, tmp_path / "whole", max_steps=6)

    def where(part):
        return lambda name, step: (name, step) == (hook, 3 * (part + 1))

    stops, end = in_parts(cfg, tmp_path / "parts", where, every=every, max_steps=6)
    assert stops == 2 and not differences(whole, end)
    assert whole.diary.validations == [3, 6]


@pytest.mark.parametrize("steps", [1, 3])
def test_checkpoints_of_nemo_at_the_end_of_a_batch_are_right_too(make_config, manifest, tmp_path, steps):
    cfg = random_pair(make_config, manifest, "classic")
    given = {"checkpoints": {"every_n_train_steps": steps, "every_n_epochs": 0}, "max_steps": 8}
    whole = train(cfg, tmp_path / "whole", **given)
    first = tmp_path / "parts"
    assert stopped(cfg, first, lambda name, step: (name, step) == ("validation", 3), **given)
    end = train(cfg, first, seed=1, **given)
    assert not differences(whole, end)
    assert end.diary.losses == whole.diary.losses[3:]
    assert end.diary.validations == whole.diary.validations == [3, 6]  # that of step 3 was due, and has been


@pytest.mark.parametrize("save_on_train_epoch_end", [True, False])
@pytest.mark.parametrize("loader, limits", [("classic", {}), ("classic", {"max_steps": 8}), ("lhotse", {})])
def test_epochs_stopped_at_their_ends(make_config, manifest, tmp_path, loader, limits, save_on_train_epoch_end):
    cfg = random_pair(make_config, manifest, loader)
    given = {**EPOCHS, **limits, "checkpoints": {"save_on_train_epoch_end": save_on_train_epoch_end}}
    cfg.optim.sched.max_steps = 9
    whole = train(cfg, tmp_path / "whole", **given)
    folder = tmp_path / "parts"
    assert stopped(cfg, folder, lambda name, step: (name, step) == ("batch_start", 3), **given)
    assert stopped(cfg, folder, lambda name, step: (name, step) == ("batch_start", 7), seed=1, **given)
    end = train(cfg, folder, seed=2, **given)
    assert not differences(whole, end)
    assert end.diary.losses == whole.diary.losses[6:]


def test_a_finished_run_is_not_trained_on(make_config, manifest, tmp_path):
    cfg = random_pair(make_config, manifest, "lhotse")
    whole = train(cfg, tmp_path / "run", max_steps=6)
    again = train(cfg, tmp_path / "run", seed=1, max_steps=6)
    assert not again.diary.losses and not again.diary.validations and not differences(whole, again)
