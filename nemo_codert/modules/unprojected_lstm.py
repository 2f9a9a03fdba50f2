"""An LSTM with projections rewritten as one without, for exporters without projected LSTMs (torch.onnx).

A projected LSTM feeds h = W_hr r back, where r is the output of its gates. Then W_hh h = (W_hh W_hr) r: an LSTM
without projection whose recurrent weight is W_hh W_hr has the same r, and h = W_hr r is computed afterwards. Exact;
the recurrent weight grows from [4H, P] to [4H, H]. B batch, T encoder frames, H cells, P projected size.
"""

import torch
from torch import nn


class UnprojectedLSTM(nn.Module):
    """LSTM without projection that has the outputs of `lstm` in inference.

    Args:
        lstm: the projected LSTM whose weights are copied, of one layer, in one or both directions.

    Raises:
        ValueError: the LSTM has no projection, or several layers.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        if not lstm.proj_size or lstm.num_layers != 1:
            raise ValueError(
                f"LSTM has proj_size {lstm.proj_size} and num_layers {lstm.num_layers}, wanted a projected LSTM of "
                "one layer: stack several one-layer LSTMs instead"
            )
        like = {"device": lstm.weight_ih_l0.device, "dtype": lstm.weight_ih_l0.dtype}
        self.lstm = nn.LSTM(
            input_size=lstm.input_size,
            hidden_size=lstm.hidden_size,
            bias=lstm.bias,
            batch_first=lstm.batch_first,
            bidirectional=lstm.bidirectional,
            **like,
        )
        suffixes = ["l0", "l0_reverse"] if lstm.bidirectional else ["l0"]
        self.projections = nn.ModuleList(
            nn.Linear(lstm.hidden_size, lstm.proj_size, bias=False, **like) for _ in suffixes
        )
        for suffix, projection in zip(suffixes, self.projections, strict=True):
            self._copy_direction(lstm, suffix, projection)

    @torch.no_grad()
    def _copy_direction(self, lstm: nn.LSTM, suffix: str, projection: nn.Linear) -> None:
        recurrent, projected = getattr(lstm, f"weight_hh_{suffix}"), getattr(lstm, f"weight_hr_{suffix}")
        product = recurrent.double() @ projected.double()  # [4H, P] x [P, H]
        getattr(self.lstm, f"weight_hh_{suffix}").copy_(product)
        for name in ("weight_ih", "bias_ih", "bias_hh")[: 3 if lstm.bias else 1]:
            getattr(self.lstm, f"{name}_{suffix}").copy_(getattr(lstm, f"{name}_{suffix}"))
        projection.weight.copy_(projected)

    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Map [B, T, D] (or [T, B, D], as in `lstm`) to [..., P], both directions side by side; no states."""
        cells, _ = self.lstm(signal)
        directions = cells.chunk(len(self.projections), dim=-1)
        projected = [projection(part) for projection, part in zip(self.projections, directions, strict=True)]
        return torch.cat(projected, dim=-1), None


def replace_projected_lstms(module: nn.Module) -> int:
    """Replace every projected `nn.LSTM` below `module` in place, and return their number."""
    replaced = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.LSTM) and child.proj_size:
            setattr(module, name, UnprojectedLSTM(child).train(child.training))
            replaced += 1
        else:
            replaced += replace_projected_lstms(child)
    return replaced
