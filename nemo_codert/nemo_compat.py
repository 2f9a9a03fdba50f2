"""The only place that touches NeMo internals: target registration, version check, loss and augmentation details.

Checked against nemo_toolkit 3.0.0. Everything else in the package uses NeMo's public classes.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import nemo
import torch
from lightning.pytorch import Trainer
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.parts.numba.rnnt_loss import RNNTLossNumba
from nemo.collections.common.parts.optional_cuda_graphs import WithOptionalCudaGraphs
from nemo.core.classes import common
from nemo.utils.app_state import AppState

TARGET_PREFIX = "nemo_codert."
TESTED_NEMO = "3.0"


def register_targets() -> None:
    """Let NeMo build classes of this package from configs and `.nemo` files, and nothing else besides its own."""
    if TARGET_PREFIX not in common.ALLOWED_TARGET_PREFIXES:
        common.ALLOWED_TARGET_PREFIXES.append(TARGET_PREFIX)
    if not nemo.__version__.startswith(TESTED_NEMO + "."):
        warnings.warn(
            f"nemo_toolkit {nemo.__version__} is untested with nemo_codert: it was made for {TESTED_NEMO}.x.",
            stacklevel=2,
        )


def is_allowed_target(target: object) -> bool:
    """Whether NeMo, with our prefix on its list, builds a class of this name."""
    register_targets()
    return isinstance(target, str) and bool(common._is_target_allowed(target))


def targets_in(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Key path and value of every `_target_` in plain dicts and lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield f"{path}._target_", node["_target_"]
        for key, value in node.items():
            yield from targets_in(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets_in(value, f"{path}[{i}]")


def fastemit_lambda(loss: RNNTLoss) -> float:
    """FastEmit's lambda of a NeMo RNN-T loss (its CUDA and CPU kernels keep it under one name)."""
    return float(getattr(loss._loss, "fastemit_lambda", 0.0))


def utterance_losses(
    loss: RNNTLoss,
    logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Losses [B] of logits [B, T, U+1, classes] by NeMo's kernel, whatever reduction `loss` is set to."""
    reduction, loss.reduction = loss.reduction, None
    try:
        return loss(
            log_probs=logits.contiguous(),
            targets=targets.contiguous(),
            input_lengths=encoded_lengths.contiguous(),
            target_lengths=target_lengths.contiguous(),
        )
    finally:
        loss.reduction = reduction


def numba_cuda_kernel(loss: RNNTLoss) -> Callable[..., torch.Tensor]:
    """NeMo's Numba loss of lattices of three classes (blank 2), utterance by utterance, with the FastEmit of `loss`.

    It is taken from inside of `RNNTLoss`, which would compare lengths and sizes and wait for the GPU twice more.
    """
    return RNNTLossNumba(blank=2, reduction="none", fastemit_lambda=fastemit_lambda(loss))


def seed_augmentation(module: torch.nn.Module, seed: int) -> None:
    """Give SpecAugment a generator seeded by us: NeMo's draws from the operating system, whatever the run's seed."""
    for offset, part in enumerate(part for part in module.modules() if isinstance(_rng_of(part), random.Random)):
        part._rng = random.Random(seed + offset)


def _rng_of(part: torch.nn.Module) -> object:
    return part.__dict__.get("_rng")


def switch_cuda_graphs(decoding: object, *, on: bool) -> bool:
    """Switch the CUDA graphs of a decoding object on (rebuilt) or off; False where it has none to switch."""
    decoder = getattr(decoding, "decoding", None)
    if not isinstance(decoder, WithOptionalCudaGraphs):
        return False
    changed = decoder.disable_cuda_graphs()
    return decoder.maybe_enable_cuda_graphs() or changed if on else changed


def is_being_restored() -> bool:
    """True inside a `restore_from` or `load_from_checkpoint`, whose weights replace whatever is loaded now."""
    return bool(AppState().is_model_being_restored)


@contextmanager
def being_restored() -> Iterator[None]:
    """Models built in this block get their weights from elsewhere: NeMo opens no data for them."""
    AppState().is_model_being_restored = True
    try:
        yield
    finally:
        AppState().is_model_being_restored = False


def forget_failed_restore() -> None:
    """A failed restore leaves NeMo believing that one is under way, and later models get no dataloaders."""
    AppState().is_model_being_restored = False
    AppState().nemo_file_folder = None


def refuse_scaled_clipping(trainer: Trainer | None, optimizer: torch.optim.Optimizer) -> None:
    """Refuse to clip the gradients of an optimizer that takes float16's loss scale off only in its own step.

    Lightning's own clipping refuses it too, but a pair clips its branches by itself.

    Raises:
        ValueError: a fused optimizer under `16-mixed`.
    """
    plugin = trainer.precision_plugin if trainer is not None else None
    if getattr(plugin, "scaler", None) and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            "model.optim.fused is true, trainer.precision is 16-mixed and trainer.gradient_clip_val is set: scaled "
            "gradients would be clipped. Leave model.optim.fused out, or use bf16-mixed"
        )
