"""Stopped and resumed, a training ends with the weights of one that was never stopped, bit for bit.

Every step, loader and kind of checkpoint: tests/reliability/test_resume_everywhere.py.
"""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from nemo_codert.training.random_state import capture, from_plain, restore, to_plain
from nemo_codert.training.resumable_loader import ResumableLoader
from tests.training.resume_runs import differences, random_pair, stopped, train


def test_a_resumed_training_ends_like_one_that_never_stopped(make_config, manifest, tmp_path):
    cfg = random_pair(make_config, manifest, "lhotse")
    given = {"max_steps": 5, "val_check_interval": 5, "limit_val_batches": 1}
    whole = train(cfg, tmp_path / "whole", **given)
    assert stopped(cfg, tmp_path / "parts", lambda hook, step: (hook, step) == ("batch_start", 4), every=2, **given)
    resumed = train(cfg, tmp_path / "parts", seed=9, **given)
    assert not differences(whole, resumed)
    assert resumed.diary.losses == whole.diary.losses[4:]
    assert resumed.diary.utterances == whole.diary.utterances[4:] and all(map(len, whole.diary.utterances))


class Squares(torch.utils.data.Dataset):
    """Squares with a random number each, drawn when they are loaded."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index**2, torch.rand(()).item()])


class Stream(IterableDataset):
    """The same, without a sampler."""

    def __iter__(self):
        return iter([Squares()[i] for i in range(10)])


def seen(loader, count: int) -> list[list[float]]:
    """The next batches, each followed by a random number that training draws."""
    found = []
    for _ in range(count):
        batch = next(loader)
        loader.begin_batch()
        found.append([*batch.flatten().tolist(), torch.rand(()).item()])
        loader.end_batch()
    return found


@pytest.mark.parametrize("dataset, shuffle", [(Squares(), True), (Stream(), None)])
@pytest.mark.parametrize("trained", [0, 1, 3, 5])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_loader_goes_on_where_another_stopped(dataset, shuffle, trained, ahead):
    first = ResumableLoader(DataLoader(dataset, batch_size=2, shuffle=shuffle))
    iter(first)
    seen(first, trained)
    drawn = [next(first) for _ in range(min(ahead, 5 - trained))]  # what Lightning draws ahead
    state, (start, before) = first.state_dict(), first.random_states()
    now = capture()
    expected = [batch.flatten().tolist() for batch in drawn]
    expected += [next(first).flatten().tolist() for _ in range(5 - trained - len(drawn))]

    torch.manual_seed(99)
    second = ResumableLoader(DataLoader(dataset, batch_size=2, shuffle=shuffle))
    second.resume_random = start, before, now
    second.load_state_dict(state)
    iter(second)
    assert [next(second).flatten().tolist() for _ in range(5 - trained)] == expected
    with pytest.raises(StopIteration):
        next(second)


def test_the_names_are_those_of_the_batch_that_training_is_at():
    loader = ResumableLoader(DataLoader(Squares(), batch_size=4))
    iter(loader)
    next(loader), next(loader)  # one ahead
    assert loader.current_utterances == []
    loader.begin_batch()
    assert loader.current_utterances == ["0", "1", "2", "3"]
    loader.end_batch(), loader.begin_batch()
    assert loader.current_utterances == ["4", "5", "6", "7"]
    assert len(loader) == 3 and isinstance(loader.dataset, Squares)


def test_a_stream_may_begin_anew():
    loader = ResumableLoader(DataLoader(Stream(), batch_size=2), replay_streams=False)
    loader.load_state_dict({"epoch": 0, "batches": 3, "passes": []})
    iter(loader)
    assert next(loader)[0, 0] == 0 and loader.trained == 3


def test_a_stream_goes_on_in_a_later_pass():
    stream = iter(range(100))

    class Endless(IterableDataset):
        def __init__(self) -> None:
            self.numbers = iter(range(100))

        def __iter__(self):
            return self.numbers

    first = ResumableLoader(DataLoader(Endless(), batch_size=None))
    for count in (3, 4, 2):  # passes of a training whose epochs have so many batches
        iter(first)
        assert [next(first) for _ in range(count)] == [next(stream) for _ in range(count)]
        [(first.begin_batch(), first.end_batch()) for _ in range(count)]
    second = ResumableLoader(DataLoader(Endless(), batch_size=None))
    second.load_state_dict(first.state_dict())
    iter(second)
    assert next(second) == 9 and second.trained == 2


def test_a_random_state_survives_its_way_through_a_file(tmp_path):
    torch.save(to_plain(capture()), tmp_path / "state.pt")
    expected = torch.rand(3)
    restore(from_plain(torch.load(tmp_path / "state.pt", weights_only=True)))
    assert torch.equal(torch.rand(3), expected)
