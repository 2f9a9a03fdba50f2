"""Errors for a model that cannot be built from a config that passed its checks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel, EncDecRNNTModel
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.models.stock_config import ctc_decoding
from nemo_codert.modules.cached_encoder import CachedEncoder

VOCABULARY = ["a", "b"]  # vocabulary of the networks that are built to find the fault


def build_error(model_cfg: DictConfig, error: Exception) -> Exception:
    """Return an error that names keys for an error that building a model raised.

    Args:
        model_cfg: the `model` section.
        error: raised somewhere in NeMo, PyTorch or here. Returned unchanged: one of ours, which names its key, and one
            of the machine (a RuntimeError, an OSError) where every block can be built by itself.
    """
    if isinstance(error, ValueError) and re.search(r"\bmodel\.\w", str(error)):
        return error
    faults = list(_faulty_blocks(model_cfg))
    if not faults and isinstance(error, RuntimeError | OSError):
        return error  # not the fault of a setting
    faults = faults or [f"model: {_in_words(error)}"]
    return ValueError("The model cannot be built:\n  - " + "\n  - ".join(faults))


def try_networks(model: EncDecRNNTModel) -> None:
    """Run a second of noise through the front end, the masks and the encoders: some settings fail only in use.

    The decoding of a hybrid student's CTC head, which no training uses, is built.

    The global random state and the model's modes are not changed.

    Raises:
        ValueError: a part fails; names its key.
    """
    training = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _named("model.preprocessor"):
        model.eval()  # batch norms keep their statistics
        device, rate = (
            model.preprocessor.featurizer.window.device,
            int(model.cfg.preprocessor.get("sample_rate", 16000)),
        )
        signal = 0.1 * torch.randn(1, rate, device=device)
        length = torch.tensor([rate], device=device)
        features, length = model.preprocessor(input_signal=signal, length=length)  # [1, F, T_in]
        if getattr(model, "spec_augmentation", None) is not None:
            with _named("model.spec_augment"):
                model.spec_augmentation(input_spec=features, length=length)
        for key in ("encoder", "student_encoder"):
            encoder = getattr(model, key, None)
            if encoder is not None and not isinstance(encoder, CachedEncoder):
                with _named(f"model.{key.replace('_', '.')}"):
                    encoder(audio_signal=features, length=length)
    if getattr(model, "student_ctc_decoder", None) is not None:  # built again when the student leaves the pair
        with _named("model.student.aux_ctc.decoding"):
            CTCBPEDecoding(ctc_decoding(model.cfg.student.aux_ctc), model.tokenizer)
    model.train(training)


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("The model cannot be built"):
            raise  # the error names a block within this one
        raise ValueError(f"The model cannot be built:\n  - {key} fails in use: {_in_words(error)}") from error


def _faulty_blocks(cfg: DictConfig) -> Iterator[str]:
    """Yield config path and reason of each block that cannot be built by itself."""
    own = [f"student.{part}" for part in ("encoder", "decoder", "joint")]
    for key in ("preprocessor", "spec_augment", "encoder", "decoder", "joint", *own):
        block = OmegaConf.select(cfg, key)
        if not OmegaConf.is_dict(block):
            continue
        try:
            block = OmegaConf.create(OmegaConf.to_container(block, resolve=True))
            with open_dict(block):
                _complete(key.rsplit(".", 1)[-1], block, cfg)
            EncDecRNNTBPEModel.from_config_dict(block)
        except Exception as error:
            yield f"model.{key}: {_in_words(error)}"


def _complete(kind: str, block: DictConfig, cfg: DictConfig) -> None:
    """Fill in the keys that NeMo's models fill in."""
    if kind == "decoder":
        block.vocab_size = len(VOCABULARY)
    elif kind == "joint":
        block.num_classes, block.vocabulary = len(VOCABULARY), VOCABULARY
        block.jointnet.encoder_hidden = cfg.model_defaults.enc_hidden
        block.jointnet.pred_hidden = cfg.model_defaults.pred_hidden


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
