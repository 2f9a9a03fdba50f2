"""An LSTM under bfloat16 autocast runs on any processor."""

import logging

import pytest
import torch
from torch import nn

from nemo_codert import nemo_compat


@pytest.fixture(params=[False, True], ids=["this processor", "one without AVX-512"])
def processor(request, monkeypatch, caplog):
    """torch.nn.LSTM as importing the package leaves it: here, and where the processor lacks bfloat16."""
    original = getattr(nn.LSTM.forward, "__wrapped__", nn.LSTM.forward)
    monkeypatch.setattr(nn.LSTM, "forward", original)
    if request.param:
        monkeypatch.setattr(nemo_compat, "cpu_computes_bfloat16_lstms", lambda: False)
    caplog.set_level(logging.INFO, logger="nemo_codert")
    nemo_compat.let_lstms_run_under_bfloat16()
    return request.param


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_near_full_precision_and_has_gradients(processor, packed):
    lstm, signal = nn.LSTM(6, 8), torch.randn(5, 2, 6, requires_grad=True)
    states = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    given = nn.utils.rnn.pack_padded_sequence(signal, [5, 4]) if packed else signal
    outputs = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output, (hidden, cell) = lstm(given, states)
        outputs.append((output.data if packed else output).float())
        assert hidden.shape == cell.shape == (1, 2, 8)
    torch.testing.assert_close(*outputs, rtol=0, atol=0.02)  # bfloat16 has eight bits
    outputs[1].sum().backward()
    assert signal.grad.abs().sum() > 0 and lstm.weight_hh_l0.grad.abs().sum() > 0


def test_without_autocast_nothing_changes(processor):
    lstm, signal = nn.LSTM(6, 8), torch.randn(5, 2, 6)
    original = getattr(nn.LSTM.forward, "__wrapped__", nn.LSTM.forward)
    torch.testing.assert_close(lstm(signal)[0], original(lstm, signal)[0], rtol=0, atol=0)
    assert lstm.double()(signal.double())[0].dtype == torch.float64
    assert hasattr(nn.LSTM.forward, "__wrapped__") >= processor


def test_the_replacement_is_made_and_logged_once(processor, caplog):
    before = nn.LSTM.forward
    nemo_compat.let_lstms_run_under_bfloat16()
    assert nn.LSTM.forward is before
    replaced = hasattr(before, "__wrapped__")
    logged = [record.getMessage() for when in ("setup", "call") for record in caplog.get_records(when)]
    assert sum("LSTMs run in float32, because oneDNN has no bfloat16 LSTM" in line for line in logged) == replaced
