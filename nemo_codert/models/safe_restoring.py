"""Restoring of models from untrusted files: `.nemo` archives and Lightning checkpoints.

NeMo's own restoring unpickles a checkpoint in full and opens what an archive's config names.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.files.nemo_archive import CheckedArchive, check_config
from nemo_codert.nemo_compat import being_restored


class CheckedRestoring:
    """Mixin before a NeMo model class: restoring executes nothing of a file."""

    @classmethod
    def restore_from(
        cls, restore_path: str, *args: Any, save_restore_connector: CheckedArchive | None = None, **kwargs: Any
    ) -> Any:
        # Overrides ModelPT.restore_from: the archive is checked before anything of it is unpacked.
        connector = save_restore_connector or CheckedArchive()
        return super().restore_from(restore_path, *args, save_restore_connector=connector, **kwargs)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | Callable | None = None,
        hparams_file: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Any:
        # Overrides ModelPT.load_from_checkpoint: the checkpoint is read as data, its config is checked.
        if map_location is None and not torch.cuda.is_available():
            map_location = "cpu"
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        if hparams_file is not None:
            checkpoint["hyper_parameters"] = OmegaConf.to_container(OmegaConf.load(hparams_file))
        return model_from_checkpoint(cls, checkpoint, str(checkpoint_path), strict=strict, **kwargs)


def model_from_checkpoint(
    model_class: type[ModelPT], checkpoint: Mapping[str, Any], what: str, *, strict: bool = True, **options: Any
) -> ModelPT:
    """Build a model with the config and the weights of a checkpoint that was read (`read_checkpoint`).

    Args:
        what: name of the checkpoint in messages.
        options: arguments of the class; `cfg` takes the place of the checkpoint's config.

    Raises:
        ValueError: no config or weights in it, a config that names code, files or the environment, or one that
            `model_class` refuses.
    """
    state, hyper_parameters = checkpoint.get("state_dict"), checkpoint.get("hyper_parameters")
    cfg = options.pop("cfg", None)
    if cfg is None:
        cfg = hyper_parameters.get("cfg") if isinstance(hyper_parameters, Mapping) else None
        if not isinstance(cfg, Mapping):
            raise ValueError(f"{what} has no model config: wanted a checkpoint that training a NeMo model left")
        check_config(cfg, what)
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} has no weights: wanted a checkpoint that training a NeMo model left")
    with being_restored():
        model = model_class(cfg=OmegaConf.create(cfg), **options)
    model.on_load_checkpoint(dict(checkpoint))
    model.load_state_dict(state, strict=strict)
    device = next((value.device for value in state.values() if isinstance(value, torch.Tensor)), torch.device("cpu"))
    return model.to(device)
