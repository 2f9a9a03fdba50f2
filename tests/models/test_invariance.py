"""A pair's loss depends neither on what lies in the padding nor on the order or company of the utterances."""

import pytest
import torch

from tests.conftest import ADDITIVE, STOCK, conformer, lstm
from tests.models.training_runs import branch_losses

PAIRS = {
    "conformers": {},
    "lstms": {"teacher": lstm(layers=2), "student": lstm()},
    "conformer teacher, lstm student of half the rate": {"student": lstm(subsampling=8)},
    "stock joint": {"joint": STOCK},
    "conformer student of half the rate": {"student": conformer(subsampling=8)},
}
# float32 sums of 400 samples a frame and 160 frames an utterance, in other groups: 2e-6 relative seen.
ROUNDING = dict(rtol=2e-5, atol=0)


@pytest.fixture(params=PAIRS)
def pair(request, shared_pair):
    return shared_pair(strategy="shared_kd", **{"joint": ADDITIVE, **PAIRS[request.param]})


@torch.no_grad()
def parts(model, batch) -> dict[str, torch.Tensor]:
    return branch_losses(model, batch)


def test_garbage_in_the_padding_changes_nothing(pair, batch):
    signal, signal_len, transcript, transcript_len = (part.clone() for part in batch)
    beyond = torch.arange(signal.shape[1]) >= signal_len[:, None]
    signal[beyond] = 10 * torch.randn(int(beyond.sum()))
    transcript[torch.arange(transcript.shape[1]) >= transcript_len[:, None]] = 7
    assert beyond.any() and not torch.equal(transcript, batch[2])
    expected, found = parts(pair, batch), parts(pair, (signal, signal_len, transcript, transcript_len))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **ROUNDING, msg=name)


def test_longer_padding_changes_nothing(pair, batch):
    signal, signal_len, transcript, transcript_len = batch
    pad = torch.nn.functional.pad
    longer = (pad(signal, (0, 4000)), signal_len, pad(transcript, (0, 3)), transcript_len)
    expected, found = parts(pair, batch), parts(pair, longer)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **ROUNDING, msg=name)


def test_the_order_of_the_utterances_changes_nothing(pair, batch):
    order = torch.tensor([2, 0, 3, 1])
    expected, found = parts(pair, batch), parts(pair, tuple(part[order] for part in batch))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **ROUNDING, msg=name)


def test_the_loss_of_a_batch_is_the_mean_of_its_utterances_alone(pair, batch):
    signal, signal_len, transcript, transcript_len = batch
    alone = [
        parts(
            pair, (signal[i : i + 1, :S], signal_len[i : i + 1], transcript[i : i + 1, :U], transcript_len[i : i + 1])
        )
        for i, (S, U) in enumerate(zip(signal_len.tolist(), transcript_len.tolist(), strict=True))
    ]
    for name, value in parts(pair, batch).items():
        mean = torch.stack([single[name] for single in alone]).mean()
        torch.testing.assert_close(mean, value, **ROUNDING, msg=name)
