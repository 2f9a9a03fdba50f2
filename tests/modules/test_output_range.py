"""Bounds on the outputs of encoders and prediction networks: held by any input, reached by some, or unknown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import ConformerEncoder, RNNTDecoder, StatelessTransducerDecoder
from torch import nn

from nemo_codert.modules.activation_checkpointing import checkpoint_layers
from nemo_codert.modules.output_range import output_range
from nemo_codert.modules.unprojected_lstm import replace_projected_lstms
from tests.conftest import conformer, lstm

V = 32


def make_encoder(config: dict, **overrides) -> nn.Module:
    encoder = EncDecRNNTBPEModel.from_config_dict({**config, **overrides}).eval()
    for layer in encoder.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.weight, -3.0, 3.0), nn.init.normal_(layer.bias)
    return encoder


def make_decoder(norm: str | None = None, **prednet) -> RNNTDecoder:
    prednet = {"pred_hidden": 20, "pred_rnn_layers": 2, "t_max": None, "dropout": 0.2, **prednet}
    return RNNTDecoder(prednet=prednet, vocab_size=V, normalization_mode=norm, blank_as_pad=True).eval()


@torch.no_grad()
def encode(encoder: nn.Module, size: float, seed: int) -> torch.Tensor:
    signal = torch.randn(2, 32, 60, generator=torch.Generator().manual_seed(seed)) * size
    return encoder(audio_signal=signal, length=torch.tensor([60, 33]))[0]


@torch.no_grad()
def predict(decoder: RNNTDecoder, size: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    decoder.prediction["embed"].weight.copy_(torch.randn(V + 1, 20, generator=generator) * size)
    states = [torch.randn(2, 3, channels, generator=generator) * size for channels in state_sizes(decoder)]
    tokens = torch.randint(0, V, (3, 12), generator=generator)
    return decoder.predict(tokens, state=states, add_sos=False)[0].transpose(1, 2)


def state_sizes(decoder: RNNTDecoder) -> tuple[int, int]:
    network = decoder.prediction["dec_rnn"].lstm
    return network.proj_size or network.hidden_size, network.hidden_size


NETWORKS = {
    "conformer": lambda: make_encoder(conformer()),
    "reduced_before_the_last_layer": lambda: make_encoder(
        conformer(layers=2), reduction="pooling", reduction_position=0, reduction_factor=2
    ),
    "lstm": lambda: make_encoder(lstm(layers=2)),
    "prediction": make_decoder,
    "projected_prediction": lambda: make_decoder(rnn_hidden_size=30),
}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: make() for name, make in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([1e-6, 1.0, 30.0, 1e4]), seed=st.integers(0, 2**31))
def test_no_output_is_larger_than_the_range(networks, name, size, seed):
    network = networks[name]
    found = (predict if isinstance(network, RNNTDecoder) else encode)(network, size, seed)
    bound = output_range(network)
    assert bound.shape == found.shape[1:2] and bound.dtype == torch.float64
    assert (found.abs().amax((0, 2)) <= bound).all()


@torch.no_grad()
def test_the_range_of_a_layer_norm_is_reached_but_for_the_margin():
    encoder = make_encoder(conformer())
    norm, bound = encoder.layers[-1].norm_out, output_range(encoder)
    largest = torch.maximum(norm(1e4 * torch.eye(16)).diag().abs(), norm(-1e4 * torch.eye(16)).diag().abs())
    torch.testing.assert_close(largest.double() * 1.01, bound, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_range_of_an_lstm_is_reached():
    decoder = make_decoder(pred_rnn_layers=1)
    network = decoder.prediction["dec_rnn"].lstm
    network.bias_ih_l0.fill_(50.0)  # all gates open
    tokens, states = torch.zeros(1, 30, dtype=torch.long), [torch.zeros(1, 1, 20)] * 2
    assert decoder.predict(tokens, state=states, add_sos=False)[0].max() == 1.0 == output_range(decoder).max()


@torch.no_grad()
def test_the_range_of_a_projected_lstm_is_reached_but_for_the_margin():
    decoder = make_decoder(rnn_hidden_size=30)
    network = decoder.prediction["dec_rnn"].lstm
    network.bias_ih_l1.fill_(50.0), network.weight_hr_l1.abs_()
    tokens, states = torch.zeros(1, 30, dtype=torch.long), [torch.zeros(2, 1, channels) for channels in (20, 30)]
    last = decoder.predict(tokens, state=states, add_sos=False)[0][0, -1]
    torch.testing.assert_close(last.double() * 1.01, output_range(decoder), rtol=1e-5, atol=0)


def test_the_range_is_that_of_the_weights_at_the_time():
    encoder = make_encoder(conformer())
    before = output_range(encoder)
    with torch.no_grad():
        encoder.layers[-1].norm_out.weight.mul_(2), encoder.layers[-1].norm_out.bias.mul_(2)
    assert torch.equal(output_range(encoder), 2 * before) and not before.requires_grad


def test_rewritten_lstms_and_checkpointed_layers_keep_their_range():
    rewritten, checkpointed = make_encoder(lstm()), make_encoder(conformer())
    before = [output_range(encoder) for encoder in (rewritten, checkpointed)]
    assert replace_projected_lstms(rewritten) == 1
    checkpoint_layers(checkpointed)
    assert all(map(torch.equal, before, [output_range(encoder) for encoder in (rewritten, checkpointed)]))


class OwnConformer(ConformerEncoder):
    """Might do anything after the last layer."""


def with_adapter(network: nn.Module, adapted: nn.Module, channels: int) -> nn.Module:
    target = "nemo.collections.common.parts.adapter_modules.LinearAdapter"
    adapted.add_adapter("own", {"_target_": target, "in_features": channels, "dim": 4})
    return network


def adapted_conformer() -> nn.Module:
    encoder = make_encoder(conformer())
    return with_adapter(encoder, encoder.layers[-1], 16)


def adapted_prediction() -> nn.Module:
    decoder = make_decoder()
    return with_adapter(decoder, decoder, 20)


UNKNOWN = {
    "projected_conformer": lambda: make_encoder(conformer(), feat_out=12),
    "reduced_at_the_end": lambda: make_encoder(
        conformer(), reduction="striding", reduction_position=-1, reduction_factor=2
    ),
    "reduced_after_the_last_layer": lambda: make_encoder(
        conformer(layers=2), reduction="striding", reduction_position=1, reduction_factor=2
    ),
    "adapted_conformer": adapted_conformer,
    "subclass": lambda: OwnConformer(**{k: v for k, v in conformer().items() if k != "_target_"}),
    "stateless": lambda: StatelessTransducerDecoder(
        prednet={"pred_hidden": 20, "context_size": 2, "dropout": 0.0}, vocab_size=V, context_size=2
    ),
    "adapted_prediction": adapted_prediction,
    "batch_norm": lambda: make_decoder("batch"),
    "layer_norm": lambda: make_decoder("layer", dropout=0.0),
    "other": lambda: nn.LSTM(4, 4),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_networks_have_no_known_range(name):
    assert output_range(UNKNOWN[name]()) is None
