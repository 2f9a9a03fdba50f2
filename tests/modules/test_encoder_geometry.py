"""Width and stride read from built encoders."""

import copy

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

from nemo_codert.modules.encoder_geometry import EncoderGeometry, encoder_geometry
from tests.conftest import conformer, lstm


def build(config: dict) -> torch.nn.Module:
    return EncDecRNNTBPEModel.from_config_dict(OmegaConf.create(config))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("subsampling", ["striding", "dw_striding"])
def test_a_conformer_is_read_whatever_its_subsampling(factor, causal, subsampling):
    encoder = build({**conformer(subsampling=factor), "subsampling": subsampling, "causal_downsampling": causal})
    assert encoder_geometry(encoder, 32) == EncoderGeometry(width=16, stride=factor)


def test_a_conformers_output_projection_is_its_width():
    assert encoder_geometry(build({**conformer(), "feat_out": 10}), 32).width == 10


def test_a_reduction_inside_a_conformer_counts():
    reduction = {"reduction": "pooling", "reduction_position": 1, "reduction_factor": 2}
    assert encoder_geometry(build({**conformer(layers=2), **reduction}), 32).stride == 8


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_width_of_an_lstm_encoder_is_its_projection(factor):
    assert encoder_geometry(build(lstm(subsampling=factor)), 32) == EncoderGeometry(width=16, stride=factor)


@pytest.mark.parametrize("training", [True, False])
def test_reading_leaves_the_random_state_the_mode_and_the_weights_alone(training):
    busy = {"dropout": 0.5, "dropout_pre_encoder": 0.5, "dropout_att": 0.5, "conv_norm_type": "batch_norm"}
    encoder = build({**conformer(), **busy}).train(training)
    state, weights = torch.random.get_rng_state(), copy.deepcopy(encoder.state_dict())
    encoder_geometry(encoder, 32)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training is training for module in encoder.modules())
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_mode_is_restored_when_the_encoder_fails():
    encoder = build(conformer()).train()
    with pytest.raises(Exception):  # noqa: B017  NeMo's own error, whatever it is
        encoder_geometry(encoder, 33)
    assert encoder.training
