"""The rewriting of projected LSTMs: same outputs, no projection left."""

import pytest
import torch
from nemo.collections.asr.modules import RNNEncoder
from torch import nn

from nemo_codert.modules.unprojected_lstm import UnprojectedLSTM, replace_projected_lstms


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_equal_the_projected_lstm(bidirectional, bias, batch_first):
    lstm = nn.LSTM(7, 12, proj_size=5, bidirectional=bidirectional, bias=bias, batch_first=batch_first)
    signal = torch.randn(3, 40, 7)
    with torch.no_grad():
        expected, found = lstm(signal)[0], UnprojectedLSTM(lstm)(signal)[0]
    # the recurrent product is rounded once more, over 40 steps of float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_in_float64_the_rewriting_is_exact_to_rounding():
    lstm = nn.LSTM(7, 32, proj_size=16, batch_first=True).double()
    signal = torch.randn(2, 200, 7, dtype=torch.float64)
    torch.testing.assert_close(UnprojectedLSTM(lstm)(signal)[0], lstm(signal)[0], atol=1e-13, rtol=0)


@pytest.mark.parametrize("options", [{"proj_size": 0}, {"proj_size": 4, "num_layers": 2}])
def test_other_lstms_are_refused(options):
    with pytest.raises(ValueError, match="wanted a projected LSTM of one layer"):
        UnprojectedLSTM(nn.LSTM(7, 12, **options))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_layer_of_a_nemo_encoder_is_replaced_and_the_output_stays(bidirectional):
    settings = {"subsampling": "striding", "subsampling_factor": 4, "subsampling_conv_channels": 8, "dropout": 0.0}
    encoder = RNNEncoder(feat_in=16, n_layers=3, d_model=24, proj_size=12, bidirectional=bidirectional, **settings)
    encoder.eval()
    signal, length = torch.randn(2, 16, 120), torch.tensor([120, 90])
    with torch.no_grad():
        expected, expected_len = encoder(audio_signal=signal, length=length)
        assert replace_projected_lstms(encoder) == 3
        found, found_len = encoder(audio_signal=signal, length=length)
    assert not [layer for layer in encoder.modules() if isinstance(layer, nn.LSTM) and layer.proj_size]
    assert not any(layer.training for layer in encoder.modules())
    assert found_len.equal(expected_len)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # three layers of float32; 8.2e-7 seen


def test_modules_without_projections_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    assert replace_projected_lstms(model) == 0
    assert isinstance(model[1], nn.LSTM)
