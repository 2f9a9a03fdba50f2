"""Bounds on the outputs of an encoder or a prediction network, read from its weights.

The bounds hold for every input. A stock joint in `narrow` form is built on them (`stock_joint`). D channels.
"""

import torch
from nemo.collections.asr.modules import ConformerEncoder, RNNEncoder, RNNTDecoder
from nemo.collections.common.parts.rnn import LSTMDropout
from torch import nn

MARGIN = 1.01  # a bound is reached by few inputs, but rounding may pass it: bfloat16 by 2^-8


@torch.no_grad()
def output_range(module: nn.Module) -> torch.Tensor | None:
    """Return a bound on the absolute value of each output channel in inference.

    Known are NeMo's `ConformerEncoder` and `RNNEncoder` that end in a layer norm, and `RNNTDecoder` with a plain LSTM.
    The bound is that of the weights at the time of the call: call it after training.

    Args:
        module: encoder or prediction network.

    Returns:
        [D] float64, or None where no bound is known, as for subclasses and adapters, which may change the output.
    """
    # Not isinstance: a subclass may add layers after the last one, as NeMo's adapter classes do.
    if type(module) is ConformerEncoder:
        return _conformer_range(module)
    if type(module) is RNNEncoder:
        # Each LSTM layer is followed by a layer norm and a dropout, whatever the LSTM was rewritten to for ONNX.
        return _layer_norm_range(module.layers[-2])
    if type(module) is RNNTDecoder and not module.is_adapter_available():
        return _prediction_range(module.prediction["dec_rnn"])
    return None


def _conformer_range(encoder: ConformerEncoder) -> torch.Tensor | None:
    last = encoder.layers[-1]
    reduced_after = encoder.reduction_position in (-1, len(encoder.layers) - 1)
    if encoder.out_proj is not None or reduced_after or last.is_adapter_available():
        return None
    return _layer_norm_range(last.norm_out)


def _layer_norm_range(norm: nn.LayerNorm) -> torch.Tensor:
    # D numbers of mean 0 and mean square 1 (or below, by the epsilon) are at most sqrt(D - 1) each.
    weight, bias = norm.weight.double(), norm.bias.double()
    return MARGIN * ((len(weight) - 1) ** 0.5 * weight.abs() + bias.abs())


def _prediction_range(network: nn.Module) -> torch.Tensor | None:
    # NeMo's other two networks, of normalization_mode batch and layer, do not pass its own type check (3.0.0).
    if type(network) is not LSTMDropout:
        return None
    lstm = network.lstm
    if not lstm.proj_size:
        return torch.ones(lstm.hidden_size, dtype=torch.float64, device=lstm.weight_ih_l0.device)
    # With a projection h = W_hr r, and r = o * tanh(c) lies in [-1, 1]: rnn_hidden_size above pred_hidden.
    projection = getattr(lstm, f"weight_hr_l{lstm.num_layers - 1}").double()  # [D, H]
    return MARGIN * projection.abs().sum(1)
