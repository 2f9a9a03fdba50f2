"""The exact RNN-T loss of an additive joint, `z[b,t,u] = E[b,t] + G[b,u]`, without the [B, T, U+1, V+1] lattice.

The normaliser of all lattice cells is a matrix product of exponentials,
`Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and with the occupancies gamma the gradient is two more:
`dE = exp(E) * ((gamma / Z) @ exp(G)) - occupancies of the tokens`. These are float32. The columns of the utterance's
own tokens and of the blank are float64 throughout, for two reasons: only there is an occupancy taken off, and what is
left of it in a confident lattice may be a millionth; and they are nearly all of such a lattice's Z. An utterance on
which float32 could go wrong is computed in float64 altogether (`additive_float64`).
Imports torch, `cpu/additive`, `additive_torch`, `additive_float64`, `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank

import torch

from nemo_codert.losses.additive_float64 import compute_dtype
from nemo_codert.losses.additive_torch import AdditiveLogProbs
from nemo_codert.losses.cpu.additive import AdditiveLoss
from nemo_codert.losses.lattice import (
    LatticeLoss,
    check_fastemit,
    check_reduction,
    check_transducer_batch,
    reduce_losses,
    rnnt_lattice_loss,
)


def _check_logits(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> None:
    """Raise ValueError unless the shapes are [B, T, V+1] and [B, U+1, V+1]."""
    shapes = tuple(encoder_logits.shape), tuple(prediction_logits.shape)
    if any(len(shape) != 3 for shape in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(f"encoder_logits must be [B, T, V+1] and prediction_logits [B, U+1, V+1], got {shapes}")


def additive_rnnt_loss(
    encoder_logits: torch.Tensor,
    prediction_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    blank: int,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
    lattice_loss: LatticeLoss = rnnt_lattice_loss,
) -> torch.Tensor:
    """RNN-T loss in nats of the joint `log_softmax(E[b,t] + G[b,u])`, exact at any scale of the logits.

    encoder_logits: [B, T, V+1] float. prediction_logits: [B, U+1, V+1] float. targets: [B, U] int, 0..V without blank.
    encoded_lengths: [B] int in frames, 1..T. target_lengths: [B] int in tokens, 0..U. What lies beyond the lengths is
    never read and gets a zero gradient. blank: any index of V+1. reduction: see `reduce_losses`. fastemit_lambda:
    at least 0, see `rnnt_lattice_loss`. lattice_loss: who runs the recursion, by default float64 on any device.
    Computed in float32 (float64 if an argument is) where that is exact, else in float64, utterance by utterance; the
    recursion in float64. Exact is a millionth or two on the CPU, and 1e-4 at worst on a GPU or for a recursion that
    is handed in (docs/performance.md). Memory grows with T·V + U·V + T·U.
    Returns a scalar, or [B] for `none`. Graves, arXiv:1211.3711; the joint is that of CoDERT, arXiv:2106.07734.
    Raises ValueError for shapes, lengths, targets, blank or reduction that do not fit.
    """
    check_reduction(reduction)
    _check_logits(encoder_logits, prediction_logits)
    blank = int(blank)  # a kernel would be compiled again for another type
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_logits.shape[:2], *prediction_logits.shape[1:]),
        blank=blank,
        device=encoder_logits.device,
    )
    check_fastemit(fastemit_lambda)
    if encoder_logits.device.type == "cpu" and lattice_loss is rnnt_lattice_loss:
        return AdditiveLoss.apply(encoder_logits, prediction_logits, batch, blank, fastemit_lambda, reduction)
    label, blanks = AdditiveLogProbs.apply(
        encoder_logits[:, : batch.num_frames],
        prediction_logits[:, : batch.targets.shape[1] + 1],
        batch,
        blank,
    )
    losses = lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    dtype = compute_dtype(encoder_logits, prediction_logits)
    return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)
