"""The exact RNN-T loss of an additive joint, `z[b,t,u] = E[b,t] + G[b,u]`, without the [B, T, U+1, V+1] lattice.

The normaliser of all lattice cells is a matrix product of exponentials,
`Z[b,t,u] = sum_v exp(E[b,t,v]) exp(G[b,u,v])`, and with the occupancies gamma the gradient is two more:
`dE = exp(E) * ((gamma / Z) @ exp(G)) - occupancies of the tokens`. These are float32. The columns of the utterance's
own tokens and of the blank are float64 throughout, for two reasons: an occupancy is subtracted in these columns only,
and the difference may be a millionth of both terms in a confident lattice; and they are nearly all of such a lattice's
Z. An utterance on which float32 could go wrong is computed in float64 altogether (`additive_float64`).
On the CPU compiled kernels compute the loss (`cpu/additive`), elsewhere, and where these cannot be built, torch's
functions (`additive_torch`).
Imports torch, `additive_torch`, `additive_float64`, `batch_checks`, `cpu_kernels`, `lattice`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank

import torch

from nemo_codert.losses.additive_float64 import compute_dtype
from nemo_codert.losses.additive_torch import AdditiveLogProbs
from nemo_codert.losses.batch_checks import (
    check_additive_logits,
    check_fastemit,
    check_reduction,
    check_transducer_batch,
    reduce_losses,
)
from nemo_codert.losses.cpu_kernels import additive_loss
from nemo_codert.losses.lattice import rnnt_lattice_loss


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
) -> torch.Tensor:
    """Return the RNN-T loss of the joint `log_softmax(E[b,t] + G[b,u])`, exact at any scale of the logits.

    Computed in float32 (float64 if an argument is) where that is exact, else in float64, utterance by utterance; the
    recursion in float64. Exact means an error of a millionth or two on the CPU, and of 1e-4 at most on a GPU or where
    the compiled CPU kernels cannot be built (docs/loss_numerics.md). Memory grows with T·V + U·V + T·U: there is no
    tensor of size T·U·V. Logits beyond the lengths are never read and get a zero gradient.
    Graves, arXiv:1211.3711; the joint is that of CoDERT, arXiv:2106.07734.

    Args:
        encoder_logits: E, [B, T, V+1] float.
        prediction_logits: G, [B, U+1, V+1] float.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        blank: class of the blank, 0..V.
        reduction: `mean_batch`, `mean`, `mean_volume`, `sum` or `none`, as in NeMo.
        fastemit_lambda: 0 or more; scales the value and the labels' gradient by 1 + lambda (arXiv:2010.11148).

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 if an argument is.

    Raises:
        ValueError: shapes, lengths, targets, blank, reduction or lambda that do not fit.

    Example:
        Two paths emit the one token in two frames, each in three steps of probability 1/3:

        >>> import torch
        >>> from nemo_codert.losses import additive_rnnt_loss
        >>> encoder_logits = torch.zeros(1, 2, 3, requires_grad=True)  # B = 1, T = 2, V = 2
        >>> prediction_logits = torch.zeros(1, 2, 3, requires_grad=True)  # U = 1
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> loss = additive_rnnt_loss(encoder_logits, prediction_logits, torch.tensor([[0]]), *lengths, blank=2)
        >>> f"{loss.item():.4f} nats, a probability of 2/27 is {-torch.tensor(2 / 27).log().item():.4f}"
        '2.6027 nats, a probability of 2/27 is 2.6027'
        >>> loss.backward()
        >>> [round(number, 4) + 0.0 for number in encoder_logits.grad[0, 0].tolist()]  # in the first frame
        [0.0, 0.5, -0.5]
    """
    check_reduction(reduction)
    check_additive_logits(encoder_logits, prediction_logits)
    blank = int(blank)  # kernels are compiled for Python's int: another type would compile them again
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_logits.shape[:2], *prediction_logits.shape[1:]),
        blank=blank,
        device=encoder_logits.device,
    )
    check_fastemit(fastemit_lambda)
    dtype = compute_dtype(encoder_logits, prediction_logits)
    compiled = additive_loss(dtype) if encoder_logits.device.type == "cpu" else None
    if compiled is not None:
        return compiled.apply(encoder_logits, prediction_logits, batch, blank, fastemit_lambda, reduction)
    label, blanks = AdditiveLogProbs.apply(
        encoder_logits[:, : batch.num_frames],
        prediction_logits[:, : batch.targets.shape[1] + 1],
        batch,
        blank,
    )
    losses = rnnt_lattice_loss(label, blanks, batch.encoded_lengths, batch.target_lengths, fastemit_lambda)
    return reduce_losses(losses, batch.target_lengths, reduction).to(dtype)
