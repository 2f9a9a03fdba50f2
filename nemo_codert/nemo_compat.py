"""The only place that touches NeMo internals: target registration, version check, loss and augmentation details.

Checked against nemo_toolkit 3.0.0. Everything else in the package uses NeMo's public classes. The one change to torch,
to `nn.LSTM` on processors without bfloat16, is here too.
"""

import functools
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nemo
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.common.parts.optional_cuda_graphs import WithOptionalCudaGraphs
from nemo.core.classes import common
from nemo.core.classes.mixins import AccessMixin
from nemo.utils.app_state import AppState
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint
from nemo.utils.exp_manager import get_log_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.utils.rnn import PackedSequence

logger = logging.getLogger(__name__)

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
    """Return whether NeMo, with our prefix on its list, builds a class of this name."""
    register_targets()
    return isinstance(target, str) and bool(common._is_target_allowed(target))


def targets_in(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield key path and value of every `_target_` in plain dicts and lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield f"{path}._target_", node["_target_"]
        for key, value in node.items():
            yield from targets_in(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets_in(value, f"{path}[{i}]")


def fastemit_lambda(loss: RNNTLoss) -> float:
    """Return FastEmit's lambda of a NeMo RNN-T loss (its CUDA and CPU kernels keep it under one name)."""
    return float(getattr(loss._loss, "fastemit_lambda", 0.0))


def utterance_losses(
    loss: RNNTLoss,
    logits: torch.Tensor,
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Return the losses [B] of logits [B, T, U+1, classes] by NeMo's kernel, whatever reduction `loss` is set to."""
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


def seed_augmentation(module: torch.nn.Module, seed: int) -> None:
    """Give SpecAugment a generator seeded by us: NeMo's draws from the operating system, whatever the run's seed."""
    for offset, generator in enumerate(augmentation_generators(module)):
        generator.seed(seed + offset)


def switch_cuda_graphs(decoding: object, *, on: bool) -> bool:
    """Switch the CUDA graphs of a decoding object on (rebuilt) or off; False where it has none to switch."""
    decoder = getattr(decoding, "decoding", None)
    if not isinstance(decoder, WithOptionalCudaGraphs):
        return False
    changed = decoder.disable_cuda_graphs()
    return decoder.maybe_enable_cuda_graphs() or changed if on else changed


def is_being_restored() -> bool:
    """Return whether a `restore_from` or `load_from_checkpoint` runs, whose weights replace what is loaded now."""
    return bool(AppState().is_model_being_restored)


@contextmanager
def being_restored() -> Iterator[None]:
    """Mark models built in this block as restored, so that NeMo opens no data for them."""
    AppState().is_model_being_restored = True
    try:
        yield
    finally:
        AppState().is_model_being_restored = False


def forget_failed_restore() -> None:
    """Clear the mark of a restore that a failed one leaves in NeMo: later models would get no dataloaders."""
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


def augmentation_generators(module: torch.nn.Module) -> list[random.Random]:
    """Return SpecAugment's generators, in the order of the modules."""
    return [rng for part in module.modules() if isinstance(rng := part.__dict__.get("_rng"), random.Random)]


def checkpoint_folder(trainer: Trainer, manager: DictConfig) -> Path:
    """Return the folder in which exp_manager will look for the checkpoint to resume from."""
    if dirpath := OmegaConf.select(manager, "checkpoint_callback_params.dirpath"):
        return Path(dirpath)
    keys = ("exp_dir", "name", "version", "explicit_log_dir", "use_datetime_version", "resume_if_exists")
    given = {key: manager.get(key) for key in keys}
    return Path(get_log_dir(trainer, **given)[0]) / "checkpoints"


def unfinished_marker(checkpoint: Path) -> Path:
    """Return the file that NeMo keeps beside a checkpoint while it writes or removes it."""
    return NeMoModelCheckpoint.format_checkpoint_unfinished_marker_path(checkpoint)


def save_last_checkpoint(trainer: Trainer) -> None:
    """Replace the `-last.ckpt` now, between validations. NeMo's own timer saves it in this way.

    The step at which a checkpoint was last saved stays what it was: a validation of this step still saves its own.
    """
    callback = trainer.checkpoint_callback
    step = callback._last_global_step_saved
    callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
    callback._last_global_step_saved = step


def was_just_saved(trainer: Trainer) -> bool:
    """Return whether the checkpoint callback has saved this optimizer step."""
    return trainer.checkpoint_callback._last_global_step_saved == trainer.global_step


def validation_is_due(trainer: Trainer) -> bool:
    """Return whether Lightning will validate now. To be called at the end of a batch."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def answer_validation_after_resume(trainer: Trainer, *, due: bool) -> None:
    """Validate before the first batch of a resumed run only if the checkpoint was saved before a due validation.

    Left alone, Lightning's loop always validates there; NeMo's never does, nor after that first batch.
    """
    loop, asked = trainer.fit_loop.epoch_loop, []

    def should_check(data_fetcher: object) -> bool:
        if asked or not loop.restarting:
            return _TrainingEpochLoop._should_check_val_fx(loop, data_fetcher)
        asked.append(True)
        loop.val_loop.restarting = False  # it begins with its first batch
        return due

    loop._should_check_val_fx = should_check


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the gradient waits for more batches before the optimizer steps, at the end of a batch."""
    return trainer.fit_loop._should_accumulate()


def cpu_computes_bfloat16_lstms() -> bool:
    """Return whether oneDNN has bfloat16 kernels for this processor."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())


def let_lstms_run_under_bfloat16() -> None:
    """Replace `torch.nn.LSTM.forward` on processors without bfloat16 LSTMs: under CPU autocast it runs in float32.

    PyTorch passes a bfloat16 LSTM on the CPU to oneDNN, which refuses it where the processor lacks AVX-512 ("could not
    create a primitive descriptor"): training and decoding with `trainer.precision=bf16-mixed` would stop there, NeMo's
    own calls included. On other processors, and in a second call, nothing is changed.
    """
    if cpu_computes_bfloat16_lstms() or hasattr(nn.LSTM.forward, "__wrapped__"):
        return
    original = nn.LSTM.forward

    @functools.wraps(original)
    def forward(self: nn.LSTM, input: Any, hx: tuple | None = None) -> Any:  # torch's own names
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        if device != "cpu" or not torch.is_autocast_enabled("cpu"):
            return original(self, input, hx)
        with torch.autocast("cpu", enabled=False):
            return original(self, input.float(), hx and tuple(state.float() for state in hx))

    nn.LSTM.forward = forward
    logger.info(
        "torch.nn.LSTM.forward is replaced: under autocast on the CPU, LSTMs run in float32, because oneDNN has no "
        "bfloat16 LSTM for this processor (no AVX-512)"
    )


def has_layer_access(encoder: nn.Module) -> bool:
    """Return whether NeMo can register the outputs of an encoder's layers."""
    return isinstance(encoder, AccessMixin) and hasattr(encoder, "interctc_capture_at_layers")


@contextmanager
def access_to_layers(encoder: nn.Module, places: list[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Let an encoder register the outputs [B, D, T] of its layers at `places`, 0 the first; filled in on leaving.

    Access is switched on for the whole model: both encoders of a pair share its guid, but each has its own places.
    """
    guid, outputs = getattr(encoder, "model_guid", None), {}
    before = encoder.interctc_capture_at_layers, AccessMixin.is_access_enabled(guid)
    encoder.interctc_capture_at_layers = places
    AccessMixin.set_access_enabled(True, guid)
    try:
        yield outputs
        outputs.update((place, encoder._registry[f"interctc/layer_output_{place}"][0]) for place in places)
    finally:
        encoder._registry.clear()
        encoder.interctc_capture_at_layers = before[0]
        AccessMixin.set_access_enabled(before[1], guid)
