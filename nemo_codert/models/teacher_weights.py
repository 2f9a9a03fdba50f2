"""Weights from a trained RNN-T: opening their source, comparing it, and loading them without a silent gap.

A teacher may also be a hybrid RNN-T/CTC or a TDT model, which are RNN-Ts with one more head or more outputs.

A source is a model file or a pretrained name. It is restored as its own class and compared (networks, feature front
end, tokenizer) before a single weight is copied; every tensor is then loaded strictly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from nemo.collections.asr.modules import ConvASRDecoder
from omegaconf import DictConfig

from nemo_codert.config.model_kinds import KINDS, TDT, is_pair
from nemo_codert.models.open_model import branches, open_model
from nemo_codert.models.stock_config import NETWORK_BLOCKS, network_blocks
from nemo_codert.models.weight_checks import Source, check_source
from nemo_codert.modules.checksums import weights_sha256
from nemo_codert.modules.transducer import Transducer

ENCODER_BLOCKS = ("encoder", "preprocessor")  # that describe an encoder and its features


@dataclass(frozen=True)
class LoadRequest:
    """Weights to load into one branch: their source, and the config that they have to fit.

    Args:
        name: the source: path of a `.nemo` or `.ckpt` file, or a pretrained name.
        key: config key that names the source, for messages.
        branch: half to take of a source that is itself a pair: `teacher` or `student`. A teacher may be of any of
            `KINDS`, a student with durations a TDT model.
        target: networks that take the weights.
        blocks, pieces, front_end, durations: see `check_source`.
        decoder: see `load_networks`.
        encoder_alone: only the encoder, and the CTC head if the target has one, is compared and loaded: the source
            may be any model of NeMo's speech recognition, with any tokenizer.
        encoder_sha256: checksum of the weights of the source's encoder, whose output is stored: the encoder is not
            loaded, nor is its front end compared.
    """

    name: str
    key: str
    branch: str
    target: Transducer
    blocks: dict[str, DictConfig]
    pieces: list[str]
    front_end: torch.nn.Module
    durations: Sequence[int] = ()
    decoder: bool = True
    encoder_alone: bool = False
    encoder_sha256: str | None = None


def load(request: LoadRequest) -> dict[str, Any]:
    """Restore a source, compare it with the config it is meant for, and copy its weights.

    Returns:
        The source, the number of tensors and parameters loaded, and the names of the tensors.

    Raises:
        ValueError: no such source, a model of another kind, trained with other settings, or tensors that do not fit.
    """
    if request.encoder_alone:
        return _load_encoder(request)
    kinds = KINDS if request.branch == "teacher" else (TDT,) if request.durations else ()
    source = load_source(request.name, request.key, request.branch, kinds)
    blocks, front_end = request.blocks, request.front_end
    if request.encoder_sha256 is not None:
        if weights_sha256(source.networks.encoder) != request.encoder_sha256:
            raise ValueError(
                f"{request.key} {request.name!r} is not the model that the targets in model.codert.teacher_cache were "
                "made from: its encoder has other weights. Name that model, or cache its targets again"
            )
        blocks = {path: block for path, block in blocks.items() if path.rsplit(".", 1)[-1] not in ENCODER_BLOCKS}
        front_end = source.featurizer
    check_source(source, request.key, blocks, request.pieces, front_end, request.durations)
    how = {"decoder": request.decoder, "encoder": request.encoder_sha256 is None}
    return {"source": request.name, **load_networks(source, request.target, key=request.key, **how)}


def _load_encoder(request: LoadRequest) -> dict[str, Any]:
    """Load the encoder of a source, and its CTC head where the target has one, as `load`."""
    model = open_model(request.name, f"{request.key} {request.name!r}", kinds=None)
    blocks = {path: block for path, block in request.blocks.items() if path.rsplit(".", 1)[-1] in ENCODER_BLOCKS}
    cfg = network_blocks(model.cfg, request.branch)
    if not all(hasattr(model, part) and part in cfg for part in ENCODER_BLOCKS):
        raise ValueError(f"{request.key} {request.name!r} has no encoder of features: {type(model).__name__}")
    encoder = model.student_encoder if is_pair(model.cfg) and request.branch == "student" else model.encoder
    source = Source(request.name, encoder, {part: cfg[part] for part in ENCODER_BLOCKS}, model.preprocessor, [], [])
    check_source(source, request.key, blocks, None, request.front_end)
    parts = {"encoder": (encoder, request.target.encoder)}
    if request.target.ctc_head is not None:
        parts["ctc_decoder"] = (_own_ctc_head(model, request), request.target.ctc_head)
    return {"source": request.name, **_load_parts(parts, request.name, request.key)}


def _own_ctc_head(model: ASRModel, request: LoadRequest) -> ConvASRDecoder:
    """Return the CTC head of a CTC or hybrid model, whose classes must be those of the config."""
    head, ours = getattr(model, "ctc_decoder", getattr(model, "decoder", None)), request.target.ctc_head
    if not isinstance(head, ConvASRDecoder):
        raise ValueError(
            f"{request.key} {request.name!r} is {type(model).__name__} without a CTC head, but "
            "model.codert.teacher_logits is ctc_alone: wanted a CTC or hybrid model. Hidden layers alone are "
            "compared with teacher_logits: joint"
        )
    if list(head.vocabulary) != list(ours.vocabulary):
        raise ValueError(
            f"{request.key} {request.name!r}: its CTC head has {len(head.vocabulary)} classes, beginning with "
            f"{list(head.vocabulary)[:5]}, model.aux_ctc.decoder.vocabulary, or without it the tokenizer, has "
            f"{len(ours.vocabulary)}, beginning with {list(ours.vocabulary)[:5]}. Set vocabulary to the checkpoint's"
        )
    return head


def load_lone_checkpoint(model: EncDecRNNTBPEModel, name: str, key: str, branch: str) -> dict[str, Any]:
    """Warm-start a stock model that is trained alone, as a pair's branch would be; raises as `load`."""
    blocks = {f"model.{part}": model.cfg[part] for part in NETWORK_BLOCKS}
    target, pieces = branches(model)["model"], list(model.joint.vocabulary)
    durations = list(model.cfg.decoding.get("durations") or ())
    return load(LoadRequest(name, key, branch, target, blocks, pieces, model.preprocessor, durations))


def load_source(name: str, key: str, branch: str, kinds: Sequence[str]) -> Source:
    """Restore an RNN-T, or a model of one of `kinds`, and pick the branch.

    Args:
        name, key, branch: see `LoadRequest`.
        kinds: see `open_model`.

    Raises:
        ValueError: see `open_model`.
    """
    model = open_model(name, f"{key} {name!r}", kinds=kinds)
    found, cfg = branches(model), network_blocks(model.cfg, branch)
    return Source(
        name,
        found.get(branch) or found["model"],
        {part: cfg[part] for part in NETWORK_BLOCKS},
        model.preprocessor,
        list(model.joint.vocabulary),
        list(cfg.decoding.get("durations") or ()),
        getattr(model, "ctc_decoder", None),
    )


def load_networks(
    source: Source, target: Transducer, *, key: str, decoder: bool = True, encoder: bool = True
) -> dict[str, Any]:
    """Copy a source's weights into `target`, all or nothing; returns counts and names of what was loaded.

    Args:
        decoder: False leaves the prediction network and `joint.pred` (shared with the teacher) alone.
        encoder: False leaves the encoder alone.

    Raises:
        ValueError: tensors of other names or shapes.
    """
    parts = {"encoder": (source.networks.encoder, target.encoder)} if encoder else {}
    parts["joint"] = (source.networks.joint, target.joint)
    if decoder:
        parts["decoder"] = (source.networks.decoder, target.decoder)
    if target.ctc_head is not None:
        parts["ctc_decoder"] = (_ctc_head(source, key), target.ctc_head)
    return _load_parts(parts, source.name, key, decoder=decoder)


def _load_parts(
    parts: dict[str, tuple[torch.nn.Module, torch.nn.Module]], name: str, key: str, *, decoder: bool = True
) -> dict[str, Any]:
    """Copy the weights of each part's first network into its second one, all or nothing; see `load_networks`."""
    states, problems = {}, []
    for part, (trained, module) in parts.items():
        wanted = module.state_dict()
        state = {k: v for k, v in _whole_state(trained).items() if decoder or not k.startswith("pred.")}
        problems += _state_problems(part, wanted, state)
        states[part] = state
    if problems:
        raise ValueError(f"{key} {name!r} does not fit the config:\n  - " + "\n  - ".join(problems))
    for part, (_, module) in parts.items():
        module.load_state_dict(states[part])
    tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    parameters = sum(value.numel() for value in tensors.values())
    return {"tensors": len(tensors), "parameters": parameters, "keys": sorted(tensors)}


def _ctc_head(source: Source, key: str) -> ConvASRDecoder:
    """Return the source's CTC head, whose classes must be the joint's: the word pieces in order, then the blank."""
    head = source.ctc_head
    if head is None:
        raise ValueError(
            f"{key} {source.name!r} has no CTC head, but model.codert.teacher_logits is ctc: wanted a hybrid "
            "RNN-T/CTC model. Set teacher_logits to joint"
        )
    if list(head.vocabulary) != source.pieces or head.num_classes_with_blank != len(source.pieces) + 1:
        raise ValueError(f"{key} {source.name!r}: the classes of its CTC head are not those of its joint")
    return head


def _whole_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a network; for a joint that shares its prediction projection, with that projection."""
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
