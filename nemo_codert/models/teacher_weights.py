"""Weights from a trained RNN-T: where they come from, whether they fit, and loading them without a silent gap.

A teacher may also be a hybrid RNN-T/CTC or a TDT model, which are RNN-Ts with a head or with outputs more.

A source is a `.nemo` file or a pretrained name. It is restored as its own class and compared (networks, feature
front end, tokenizer) before a single weight is copied; every tensor is then loaded strictly.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_class
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel, EncDecRNNTModel
from nemo.collections.asr.modules import ConvASRDecoder
from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.stock_checks import is_tdt
from nemo_codert.config.values import sub_block
from nemo_codert.files.nemo_archive import CheckedArchive
from nemo_codert.models.layer_copy import start_from_teacher
from nemo_codert.models.stock_config import student_block, without_durations
from nemo_codert.modules.transducer import Transducer
from nemo_codert.nemo_compat import forget_failed_restore

if TYPE_CHECKING:
    from nemo_codert.models.codert_bpe_model import EncDecCoDERTBPEModel

# Kinds of models whose RNN-T part can be a teacher.
HYBRID, TDT = KINDS = ("a hybrid RNN-T/CTC model", "a TDT model")

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
    """A restored model: its networks, the configs they were built from, and what they were trained on.

    networks: of a hybrid, its CTC head with them. durations: of a TDT model, in the order of its joint's last outputs.
    """

    name: str
    networks: Transducer
    config: dict[str, DictConfig]  # encoder, decoder, joint, preprocessor
    featurizer: torch.nn.Module
    pieces: list[str]
    durations: list[int]


def load_checkpoint(
    name: str,
    key: str,
    branch: str,
    target: Transducer,
    blocks: dict[str, DictConfig],
    pieces: list[str],
    front_end: torch.nn.Module,
    *,
    decoder: bool = True,
    durations: Sequence[int] = (),
) -> dict[str, Any]:
    """Restore a source, compare it with the config it is meant for, and copy its weights into `target`.

    Args:
        key: config key that names the source, for messages.
        branch: which half to take of a source that is itself a pair: `teacher` or `student`.
        blocks, pieces, front_end, durations: see `check_source`. decoder: see `load_networks`.

    Returns:
        The source, the number of tensors and parameters loaded, and the names of the tensors.

    Raises:
        ValueError: no such source, a model of another kind, trained with other settings, or tensors that do not fit.
    """
    source = load_source(name, key, branch)
    check_source(source, key, blocks, pieces, front_end, durations)
    return {"source": name, **load_networks(source, target, key=key, decoder=decoder)}


def load_pair_checkpoints(model: "EncDecCoDERTBPEModel") -> dict[str, dict[str, Any]]:
    """Load what a pair's config names: `codert.teacher_checkpoint`, then `student.init_from` or `init_from_teacher`.

    Returns:
        `teacher` and `student`, where loaded: see `load_checkpoint`. Raises as it does.
    """
    cfg, loaded = model.cfg, {}
    pieces, front_end = list(model.joint.vocabulary), model.preprocessor
    if name := cfg.codert.teacher_checkpoint:
        key, target = "model.codert.teacher_checkpoint", model.teacher_transducer
        blocks = {f"model.{part}": cfg[part] for part in ("encoder", "decoder", "joint", "preprocessor")}
        durations = list(cfg.decoding.get("durations") or ())
        loaded["teacher"] = load_checkpoint(
            name, key, "teacher", target, blocks, pieces, front_end, durations=durations
        )
    if name := cfg.student.init_from:
        key, target, own = "model.student.init_from", model.student_transducer, not cfg.codert.share_decoder
        blocks = {"model.student.encoder": cfg.student.encoder}
        blocks |= {"model.joint": student_block(cfg, "joint"), "model.preprocessor": cfg.preprocessor}
        if own:
            blocks["model.student.decoder"] = cfg.student.decoder or cfg.decoder
        loaded["student"] = load_checkpoint(name, key, "student", target, blocks, pieces, front_end, decoder=own)
    if cfg.student.init_from_teacher:
        networks, own = (model.teacher_transducer, model.student_transducer), not cfg.codert.share_decoder
        loaded["student"] = start_from_teacher(*networks, decoder=own)
    return loaded


def load_lone_checkpoint(model: EncDecRNNTBPEModel, name: str, key: str, branch: str) -> dict[str, Any]:
    """Warm-start a stock model that is trained alone, as a pair's branch would be; raises as `load_checkpoint`."""
    blocks = {f"model.{part}": model.cfg[part] for part in ("encoder", "decoder", "joint", "preprocessor")}
    target = Transducer(model.encoder, model.decoder, model.joint)
    return load_checkpoint(name, key, branch, target, blocks, list(model.joint.vocabulary), model.preprocessor)


def load_source(name: str, key: str, branch: str) -> Source:
    """Restore an RNN-T, as a teacher also a hybrid or a TDT model, from a `.nemo` path or a pretrained name.

    Args:
        name: the path or name.
        key: config key that names it, for messages.
        branch: which half of a file that is itself a pair: `teacher` or `student`.

    Raises:
        ValueError: no such file or name, or a model of another kind or without a SentencePiece tokenizer.
    """
    return _source(name, restore_rnnt(name, f"{key} {name!r}", kinds=KINDS if branch == "teacher" else ()), branch)


def restore_rnnt(name: str | Path, what: str, kinds: Sequence[str] = ()) -> EncDecRNNTModel:
    """Restore a standard RNN-T or a pair, as its own class, on the CPU; its kind is checked before it is built.

    Args:
        name: path of a `.nemo` file, or a pretrained name.
        what: how messages call it.
        kinds: other kinds that will do, of `KINDS`.

    Raises:
        ValueError: no such file or name, a broken file, one that is not safe to open (`files.nemo_archive`), or
            a model of another kind.
    """
    path = Path(name)
    if path.is_file():
        restored_config(path, what, kinds)
        model = _restored(ASRModel.restore_from, path, what, map_location="cpu")
    elif path.suffix == ".nemo" or path.exists():
        raise ValueError(f"{what} is no file. Give the path of a .nemo file or a pretrained name")
    else:
        model = _restored(ASRModel.from_pretrained, path, what, map_location="cpu")
    refuse_other_models(model.cfg, what, kinds)
    return model.eval()


def restored_config(path: Path, what: str, kinds: Sequence[str] = ()) -> DictConfig:
    """Config of a standard RNN-T or a pair in a `.nemo` file, which is not built. kinds: see `restore_rnnt`.

    Raises:
        ValueError: a broken file, or a model of another kind.
    """
    config = _restored(ASRModel.restore_from, path, what, return_config=True)
    refuse_other_models(config, what, kinds)
    return config


def _restored(restore: Callable[..., Any], path: Path, what: str, **options: Any) -> Any:
    try:
        return restore(str(path), save_restore_connector=CheckedArchive(), **options)
    except Exception as error:
        forget_failed_restore()
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):  # names a file in a temporary folder, gone by now
            reason = f"the archive has no {Path(error.filename or 'model_config.yaml').name}"
        raise ValueError(f"{what} cannot be restored as a NeMo model: {reason}") from error


def refuse_other_models(config: DictConfig, what: str, kinds: Sequence[str] = ()) -> None:
    """Raise a ValueError that names the kind of a model that is no pair, no standard RNN-T and none of `kinds`."""
    target = str(config.get("target", "")).rsplit(".", 1)[-1]
    if target == "EncDecCoDERTBPEModel" or not (found := set(_kinds(config, target)) - set(kinds)):
        return
    wanted = " or ".join(("a standard RNN-T (EncDecRNNTBPEModel)", *kinds))
    raise ValueError(f"{what} is {', '.join(sorted(found))}, wanted {wanted} with a bpe tokenizer")


def _kinds(config: DictConfig, target: str) -> Iterator[str]:
    """What a model is besides a standard RNN-T."""
    joint, tokenizer = sub_block(config, "joint"), str(sub_block(config, "tokenizer").get("type", "bpe")).lower()
    if target == "EncDecHybridRNNTCTCBPEModel":
        yield HYBRID
    elif target != "EncDecRNNTBPEModel":
        yield target or "of unknown class"
    if is_tdt(config):
        yield TDT
    elif joint.get("num_extra_outputs"):
        yield "a multi-blank model"
    if float(joint.get("masking_prob") or 0) > 0:
        yield "a HAINAN model"
    if config.get("adapters"):
        yield "an RNN-T with adapters"
    if tokenizer != "bpe":
        yield f"an RNN-T with a tokenizer of type {tokenizer!r}"


def _source(name: str, model: EncDecRNNTModel, branch: str) -> Source:
    cfg = model.cfg
    networks = Transducer(model.encoder, model.decoder, model.joint, getattr(model, "ctc_decoder", None))
    if branch == "student" and "student" in cfg:
        networks, cfg = model.student_transducer, without_durations(cfg)
        cfg = OmegaConf.merge(cfg, {"encoder": cfg.student.encoder, "decoder": cfg.student.decoder or cfg.decoder})
    config = {part: cfg[part] for part in ("encoder", "decoder", "joint", "preprocessor")}
    durations = list(cfg.decoding.get("durations") or ())
    return Source(name, networks, config, model.preprocessor, list(model.joint.vocabulary), durations)


def load_networks(source: Source, target: Transducer, *, key: str, decoder: bool = True) -> dict[str, Any]:
    """Copy a source's weights into `target`, all or nothing; returns counts and names of what was loaded.

    Args:
        decoder: False leaves the prediction network and `joint.pred` (shared with the teacher) alone.

    Raises:
        ValueError: tensors of other names or shapes.
    """
    parts = {"encoder": (source.networks.encoder, target.encoder), "joint": (source.networks.joint, target.joint)}
    if decoder:
        parts["decoder"] = (source.networks.decoder, target.decoder)
    if target.ctc_head is not None:
        parts["ctc_decoder"] = (_ctc_head(source, key), target.ctc_head)
    states, problems = {}, []
    for part, (trained, module) in parts.items():
        wanted = module.state_dict()
        state = {k: v for k, v in _whole_state(trained).items() if decoder or not k.startswith("pred.")}
        problems += _state_problems(part, wanted, state)
        states[part] = state
    if problems:
        raise ValueError(f"{key} {source.name!r} does not fit the config:\n  - " + "\n  - ".join(problems))
    for part, (_, module) in parts.items():
        module.load_state_dict(states[part])
    tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    parameters = sum(value.numel() for value in tensors.values())
    return {"tensors": len(tensors), "parameters": parameters, "keys": sorted(tensors)}


def _ctc_head(source: Source, key: str) -> ConvASRDecoder:
    """The source's CTC head, whose classes must be the joint's in the same order: the word pieces, then the blank."""
    head = source.networks.ctc_head
    if head is None:
        raise ValueError(
            f"{key} {source.name!r} has no CTC head, but model.codert.teacher_logits is ctc: wanted a hybrid "
            "RNN-T/CTC model. Set teacher_logits to joint"
        )
    if list(head.vocabulary) != source.pieces or head.num_classes_with_blank != len(source.pieces) + 1:
        raise ValueError(f"{key} {source.name!r}: the classes of its CTC head are not those of its joint")
    return head


def _whole_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State dict of a network; a student joint that shares its prediction projection names that one too."""
    state = dict(module.state_dict())
    if hasattr(module, "pred") and "pred.weight" not in state:
        state.update({"pred.weight": module.pred.weight.detach(), "pred.bias": module.pred.bias.detach()})
    return state


def _state_problems(part: str, wanted: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> list[str]:
    missing, unexpected = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    shapes = [k for k in wanted.keys() & got.keys() if wanted[k].shape != got[k].shape]
    problems = [f"{part}: {len(missing)} tensors missing ({', '.join(missing[:3])}, ...)"] if missing else []
    if unexpected:
        problems.append(f"{part}: {len(unexpected)} tensors unexpected ({', '.join(unexpected[:3])}, ...)")
    for k in sorted(shapes)[:3]:
        problems.append(f"{part}.{k}: shape {tuple(got[k].shape)} in the file, {tuple(wanted[k].shape)} in the config")
    return problems


def check_source(
    source: Source,
    key: str,
    blocks: dict[str, DictConfig],
    pieces: list[str],
    front_end: torch.nn.Module,
    durations: Sequence[int] = (),
) -> None:
    """Compare a source with the config it is to be loaded into.

    Args:
        key: config key that names the source, for messages.
        blocks: config path -> block of ours, e.g. {"model.encoder": ...}; the last word names the source's block.
        pieces: our word pieces in order of id.
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
    """Differences between two blocks in keys that change what a network computes.

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
    """Plain defaults of the arguments of the class that a block names."""
    parameters = inspect.signature(get_class(block["_target_"]).__init__).parameters.values()
    plain = (bool, int, float, str, list, tuple, type(None))
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, plain)}


def _comparable(value: object) -> object:
    """NeMo takes null for unlimited attention context, and tuples for lists."""
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
