"""Comparison of trained networks with the config that they are to be loaded into.

A weight is only what it was trained to be where the network around it, the features and the word pieces are the same.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hydra.utils import get_class
from nemo.collections.asr.modules import ConvASRDecoder
from omegaconf import DictConfig, OmegaConf

from nemo_codert.modules.transducer import Transducer

# Keys that change training or bookkeeping but neither a weight's meaning nor the inference of a network.
TRAINING_KEYS = (
    "dropout",
    "stochastic_depth",
    "dither",
    "pad_to",
    "fuse_loss_wer",
    "fused_batch_size",
    "log_softmax",
    "preserve_memory",
    "vocabulary",
    "num_classes",
    "vocab_size",
    "weights_init_scale",
    "hidden_hidden_bias_scale",
    "forget_gate_bias",
    "t_max",
    "sync_max_audio_length",
    "encoder_hidden",
    "pred_hidden",
    "random_state_sampling",
    "masking_prob",
    "rng",
    "nb_augmentation_prob",
    "nb_max_freq",
    "use_pytorch_sdpa",
)


@dataclass(frozen=True)
class Source:
    """One branch of a restored model: its networks, the configs they were built from, and what they were trained on.

    config: the blocks encoder, decoder, joint and preprocessor; encoder and preprocessor alone where networks is an
    encoder alone, and pieces and durations are then empty. ctc_head: the CTC head of a hybrid. durations: of a
    TDT model, in the order of its joint's last outputs.
    """

    name: str
    networks: Transducer | torch.nn.Module
    config: dict[str, DictConfig]
    featurizer: torch.nn.Module
    pieces: list[str]
    durations: list[int]
    ctc_head: ConvASRDecoder | None = None


def check_source(
    source: Source,
    key: str,
    blocks: dict[str, DictConfig],
    pieces: list[str] | None,
    front_end: torch.nn.Module,
    durations: Sequence[int] = (),
) -> None:
    """Compare a source with the config it is to be loaded into.

    Args:
        key: config key that names the source, for messages.
        blocks: config path -> block of ours, e.g. {"model.encoder": ...}; the last word names the source's block.
        pieces: our word pieces in order of id; None where only the encoder is compared.
        front_end: our preprocessor, whose window and mel filters must be the source's.
        durations: those of our TDT teacher's joint, in order.

    Raises:
        ValueError: one error that lists every difference with both values and the remedy.
    """
    problems = []
    for path, block in blocks.items():
        problems += block_differences(path, block, source.config[path.rsplit(".", 1)[-1]])
    if source.durations != list(durations):
        problems.append(f"model.decoding.durations is {list(durations)}, the checkpoint has {source.durations}")
    if pieces is not None:
        problems += _tokenizer_problems(source.pieces, pieces)
    if not _same_buffers(source.featurizer, front_end):
        problems.append("model.preprocessor: window or mel filters differ from those the checkpoint was trained with")
    if problems:
        raise ValueError(
            f"{key} {source.name!r} was trained with other settings:\n  - "
            + "\n  - ".join(problems)
            + "\nSet these keys to the checkpoint's values (its config is in model_config.yaml inside the .nemo)."
        )


def block_differences(path: str, ours: DictConfig, theirs: DictConfig) -> list[str]:
    """Return the differences between two blocks in keys that change what a network computes.

    A key that only one block has is compared with the default of the network's class, where it has one.
    """
    flat_ours, flat_theirs = ({**_defaults(block), **_flat(block)} for block in (ours, theirs))
    return [
        f"{path}.{key} is {flat_ours[key]!r}, the checkpoint has {flat_theirs[key]!r}"
        for key in flat_ours
        if key in flat_theirs
        and _comparable(flat_ours[key]) != _comparable(flat_theirs[key])
        and not any(word in key.rsplit(".", 1)[-1] for word in TRAINING_KEYS)
    ]


def _defaults(block: DictConfig | dict) -> dict[str, object]:
    """Return the plain defaults of the arguments of the class that a block names."""
    parameters = inspect.signature(get_class(block["_target_"]).__init__).parameters.values()
    plain = (bool, int, float, str, list, tuple, type(None))
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, plain)}


def _comparable(value: object) -> object:
    """Return a value in its one comparable form: NeMo takes null for unlimited context, and tuples for lists."""
    value = list(value) if isinstance(value, tuple) else value
    return None if value == [-1, -1] else value


def _flat(block: DictConfig | dict, prefix: str = "") -> dict[str, object]:
    if OmegaConf.is_config(block):
        block = OmegaConf.to_container(block, resolve=True)
    flat: dict[str, object] = {}
    for key, value in block.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _tokenizer_problems(theirs: list[str], ours: list[str]) -> list[str]:
    if theirs == ours:
        return []
    first = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
    where = (
        f", first difference at id {first}: {ours[first]!r} here, {theirs[first]!r} there" if first is not None else ""
    )
    return [f"model.tokenizer has {len(ours)} word pieces, the checkpoint's has {len(theirs)}{where}"]


def _same_buffers(theirs: torch.nn.Module, ours: torch.nn.Module) -> bool:
    a, b = theirs.state_dict(), ours.state_dict()
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.allclose(a[k], b[k]) for k in a)
