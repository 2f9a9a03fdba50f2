"""The exact TDT loss (Xu et al., arXiv:2304.06795) of an additive joint and of any joint, with a float64 recursion.

A TDT joint has V+1 outputs for tokens and blank, and N more for durations. The log-probabilities of label and blank
are those of the RNN-T losses, without a lattice over V: products of exponentials by compiled kernels on the CPU and by
`additive_torch` elsewhere, or chunks of `joint_rnnt`. Durations are N logits a node. Imports torch,
`additive_float64`, `additive_rnnt`, `additive_torch`, `batch_checks`, `cpu_kernels`, `joint_rnnt`, `tdt_lattice`,
`tdt_paths`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, N durations, H joint channels

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from nemo_codert.losses.additive_float64 import compute_dtype
from nemo_codert.losses.additive_rnnt import additive_rnnt_loss
from nemo_codert.losses.additive_torch import AdditiveLogProbs
from nemo_codert.losses.batch_checks import (
    TransducerBatch,
    check_additive_logits,
    check_fastemit,
    check_reduction,
    check_transducer_batch,
    reduce_losses,
)
from nemo_codert.losses.cpu_kernels import additive_log_probs
from nemo_codert.losses.joint_rnnt import (
    JointLogProbs,
    check_joint_parts,
    chunked_joint_rnnt_loss,
    chunked_nodes,
    joint_rnnt_loss,
)
from nemo_codert.losses.tdt_lattice import tdt_lattice_loss
from nemo_codert.losses.tdt_paths import check_durations, check_paths


class _Settings(NamedTuple):
    """Checked settings of a TDT loss."""

    durations: tuple[int, ...]
    sigma: float
    omega: float
    generator: torch.Generator | None
    reduction: str
    fastemit_lambda: float

    def outputs(self, num_classes: int) -> list[int]:
        """Return the numbers of outputs for tokens and blank, V+1, and for durations, N, of num_classes in all."""
        num_durations = len(self.durations)
        if num_classes <= num_durations:
            raise ValueError(
                f"{num_classes} classes are too few: {num_durations} are for the durations {list(self.durations)}, "
                "and at least one for the blank"
            )
        return [num_classes - num_durations, num_durations]

    def takes_rnnt(self) -> bool:
        """Return whether this batch takes the RNN-T loss of the tokens, by a draw where omega is above 0."""
        if self.omega == 0:
            return False
        device = "cpu" if self.generator is None else self.generator.device
        return torch.rand((), generator=self.generator, device=device).item() < self.omega

    def of_rnnt(self, blank: int) -> dict[str, Any]:
        """Return the keywords with which a batch takes an RNN-T loss."""
        return {"blank": blank, "reduction": self.reduction, "fastemit_lambda": self.fastemit_lambda}

    def of_nodes(
        self, label: torch.Tensor, blank: torch.Tensor, duration_logits: torch.Tensor, batch: TransducerBatch
    ) -> torch.Tensor:
        """Return the reduced loss, given [B, T, U], [B, T, U+1] and [B, T, U+1, N]."""
        losses = tdt_lattice_loss(
            label,
            blank,
            duration_logits,
            batch.encoded_lengths,
            batch.target_lengths,
            durations=self.durations,
            sigma=self.sigma,
            fastemit_lambda=self.fastemit_lambda,
        )
        return reduce_losses(losses, batch.target_lengths, self.reduction)


def _checked(
    durations: Sequence[int],
    sigma: float,
    omega: float,
    generator: torch.Generator | None,
    reduction: str,
    fastemit_lambda: float,
) -> _Settings:
    """Check the settings of a TDT loss."""
    check_reduction(reduction)
    check_fastemit(fastemit_lambda)
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be 0 or more and finite, got {sigma}")
    if not 0 <= omega <= 1:
        raise ValueError(f"omega must lie between 0 and 1, the probability of the RNN-T loss, got {omega}")
    return _Settings(check_durations(durations), sigma, omega, generator, reduction, fastemit_lambda)


def additive_tdt_loss(
    encoder_logits: torch.Tensor,
    prediction_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    durations: Sequence[int],
    blank: int,
    sigma: float = 0.0,
    omega: float = 0.0,
    generator: torch.Generator | None = None,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """Return the TDT loss of the joint `E[b,t] + G[b,u]`: a softmax over tokens and blank, another over durations.

    The normaliser of the tokens is that of `additive_rnnt_loss`, a product of exponentials: memory grows with T·V +
    U·V + T·U·N, there is no tensor of size T·U·V. Durations and recursion are float64. Logits beyond the lengths are
    never read and get a zero gradient. Xu et al., arXiv:2304.06795; the joint is that of CoDERT, arXiv:2106.07734.

    Args:
        encoder_logits: E, [B, T, V+1+N] float, those of the durations last, in their order.
        prediction_logits: G, [B, U+1, V+1+N] float.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        durations: N different whole numbers of frames, 0 or more, at least one above 0. A blank never takes 0.
        blank: class of the blank, 0..V.
        sigma: 0 or more; subtracted from the log-probability of every label and blank, so that alignments of fewer
            steps cost less.
        omega: 0 to 1, the probability with which a batch takes the RNN-T loss of the tokens in place of this one;
            sigma and durations then have no part in it. Above 0 one number is drawn in each call.
        generator: of that draw; None: torch's own of the CPU (`torch.manual_seed`).
        reduction: `mean_batch`, `mean`, `mean_volume`, `sum` or `none`, as in NeMo.
        fastemit_lambda: 0 or more; scales the value and the labels' gradient by 1 + lambda (arXiv:2010.11148), the
            durations' gradient is not scaled, as in NeMo's `tdt`.

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 if an argument is.

    Raises:
        ValueError: shapes, lengths, targets or settings that do not fit, and utterances without a path: those that no
            sum of durations fits (`has_tdt_path`).

    Example:
        One token in two frames, durations 0 and 1, all probabilities 1/2: three alignments, of 1/16, 1/64 and 1/64.

        >>> import torch
        >>> from nemo_codert.losses import additive_tdt_loss
        >>> encoder_logits = torch.zeros(1, 2, 4, requires_grad=True)  # B = 1, T = 2, V = 1, N = 2
        >>> prediction_logits = torch.zeros(1, 2, 4, requires_grad=True)  # U = 1
        >>> batch = encoder_logits, prediction_logits, torch.tensor([[0]]), torch.tensor([2]), torch.tensor([1])
        >>> loss = additive_tdt_loss(*batch, durations=[0, 1], blank=1)
        >>> f"{loss.item():.4f} nats, a probability of 6/64 is {-torch.tensor(6 / 64).log().item():.4f}"
        '2.3671 nats, a probability of 6/64 is 2.3671'
        >>> loss.backward()  # gradients of token, blank, and durations 0 and 1 in the first frame:
        >>> [round(number, 4) + 0.0 for number in encoder_logits.grad[0, 0].tolist()]
        [-0.25, 0.25, 0.4167, -0.4167]
    """
    settings = _checked(durations, sigma, omega, generator, reduction, fastemit_lambda)
    check_additive_logits(encoder_logits, prediction_logits, "V+1+N")
    outputs, blank = settings.outputs(encoder_logits.shape[2]), int(blank)
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_logits.shape[:2], prediction_logits.shape[1], outputs[0]),
        blank=blank,
        device=encoder_logits.device,
    )
    check_paths(batch.sizes, settings.durations)
    encoder = encoder_logits[:, : batch.num_frames].split(outputs, -1)
    prediction = prediction_logits[:, : batch.targets.shape[1] + 1].split(outputs, -1)
    if settings.takes_rnnt():
        return additive_rnnt_loss(encoder[0], prediction[0], *batch[:3], **settings.of_rnnt(blank))
    dtype = compute_dtype(encoder_logits, prediction_logits)
    compiled = additive_log_probs(dtype) if encoder_logits.device.type == "cpu" else None
    log_probs = AdditiveLogProbs if compiled is None else compiled
    label, blanks = log_probs.apply(encoder[0], prediction[0], batch, blank)
    duration_logits = encoder[1].double()[:, :, None] + prediction[1].double()[:, None]
    return settings.of_nodes(label, blanks, duration_logits, batch).to(dtype)


def joint_tdt_loss(
    joint_logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    durations: Sequence[int],
    blank: int,
    sigma: float = 0.0,
    omega: float = 0.0,
    generator: torch.Generator | None = None,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """Return the TDT loss of joint logits, or of log-probabilities, which a log-softmax leaves unchanged.

    Computed in float32 (float64 for float64 logits), durations and recursion in float64. Logits beyond the lengths are
    never read and get a zero gradient. Xu et al., arXiv:2304.06795.

    Args:
        joint_logits: [B, T, U+1, V+1+N] float, those of the durations last, in their order.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        durations, blank, sigma, omega, generator, reduction, fastemit_lambda: as in `additive_tdt_loss`.

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes, lengths, targets or settings that do not fit, and utterances without a path.

    Example:
        One token in two frames, durations 0 and 1, all probabilities 1/2: three alignments, of 1/16, 1/64 and 1/64.

        >>> import torch
        >>> from nemo_codert.losses import joint_tdt_loss
        >>> joint_logits = torch.zeros(1, 2, 2, 4)  # B = 1, T = 2, U = 1, V = 1, N = 2
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> loss = joint_tdt_loss(joint_logits, torch.tensor([[0]]), *lengths, durations=[0, 1], blank=1)
        >>> f"a probability of {torch.exp(-loss).item():.4f}, which is 6/64 = {6 / 64:.4f}"
        'a probability of 0.0938, which is 6/64 = 0.0938'
    """
    settings = _checked(durations, sigma, omega, generator, reduction, fastemit_lambda)
    if joint_logits.dim() != 4:
        raise ValueError(f"joint_logits must be [B, T, U+1, V+1+N], got {tuple(joint_logits.shape)}")
    outputs = settings.outputs(joint_logits.shape[3])
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*joint_logits.shape[:3], outputs[0]),
        blank=blank,
        device=joint_logits.device,
    )
    check_paths(batch.sizes, settings.durations)
    joint_logits = joint_logits[:, : batch.num_frames, : batch.targets.shape[1] + 1]
    tokens, duration_logits = joint_logits.split(outputs, -1)
    if settings.takes_rnnt():
        return joint_rnnt_loss(tokens, *batch[:3], **settings.of_rnnt(blank))
    label, blanks = JointLogProbs.apply(tokens, batch.targets, batch.sizes, blank)
    loss = settings.of_nodes(label, blanks, duration_logits, batch)
    return loss.to(torch.promote_types(joint_logits.dtype, torch.float32))


def chunked_joint_tdt_loss(
    joint: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    encoder_part: torch.Tensor,
    prediction_part: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    durations: Sequence[int],
    num_classes: int,
    blank: int,
    sigma: float = 0.0,
    omega: float = 0.0,
    generator: torch.Generator | None = None,
    reduction: str = "mean_batch",
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """Return the TDT loss of `joint(encoder_part, prediction_part)`, whose logits never exist all at once.

    Computed in chunks as `chunked_joint_rnnt_loss` is; the logits of the durations alone are kept for all nodes.

    Args:
        joint: takes [T', 1, H] and [1, U'+1, H], returns logits [T', U'+1, V+1+N], those of the durations last; may
            have parameters and dropout.
        encoder_part: [B, T, H] float.
        prediction_part: [B, U+1, H] float.
        targets: [B, U] int, token ids 0..V other than blank.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        num_classes: V+1+N.
        durations, blank, sigma, omega, generator, reduction, fastemit_lambda: as in `additive_tdt_loss`.

    Returns:
        The loss in nats: a scalar, or [B] for `none`; float32, or float64 for float64 encoder_part.

    Raises:
        ValueError: arguments that do not fit, utterances without a path, or a joint that returns another number of
            classes.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import chunked_joint_tdt_loss
        >>> output = torch.nn.Linear(4, 4)
        >>> _ = torch.nn.init.zeros_(output.weight), torch.nn.init.zeros_(output.bias)
        >>> joint = lambda encoder, prediction: output(torch.relu(encoder + prediction))
        >>> batch = torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.tensor([[0]]), torch.tensor([2]), torch.tensor([1])
        >>> loss = chunked_joint_tdt_loss(joint, *batch, durations=[0, 1], num_classes=4, blank=1)
        >>> f"a probability of {torch.exp(-loss).item():.4f}, which is 6/64 = {6 / 64:.4f}"
        'a probability of 0.0938, which is 6/64 = 0.0938'
    """
    settings = _checked(durations, sigma, omega, generator, reduction, fastemit_lambda)
    check_joint_parts(encoder_part, prediction_part)
    outputs = settings.outputs(num_classes)
    batch = check_transducer_batch(
        targets,
        encoded_lengths,
        target_lengths,
        lattice_shape=(*encoder_part.shape[:2], prediction_part.shape[1], outputs[0]),
        blank=blank,
        device=encoder_part.device,
    )
    check_paths(batch.sizes, settings.durations)

    def split_logits(frames: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = joint(frames, states)  # [T', U_b+1, V+1+N]
        if logits.shape[-1] != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but the joint gives {logits.shape[-1]} classes")
        return logits.split(outputs, -1)

    if settings.takes_rnnt():
        return chunked_joint_rnnt_loss(
            lambda *parts: split_logits(*parts)[0],
            *(encoder_part, prediction_part, *batch[:3]),
            num_classes=outputs[0],
            **settings.of_rnnt(blank),
        )

    def node_values(frames: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, duration_logits = split_logits(frames[:, None], states[None])
        sizes = [(len(frames), len(tokens))]
        return *JointLogProbs.apply(logits[None], tokens[None], sizes, blank), duration_logits[None]

    nodes = chunked_nodes(node_values, encoder_part, prediction_part, batch, num_classes)
    return settings.of_nodes(*nodes, batch).to(torch.promote_types(encoder_part.dtype, torch.float32))
