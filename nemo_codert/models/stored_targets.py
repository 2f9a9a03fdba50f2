"""The pair of a teacher whose targets are stored: its config from the header of the targets, and checks against it."""

import copy
from collections.abc import Iterator

from omegaconf import DictConfig, open_dict

from nemo_codert.config.criteria import distillation_terms, kind_of
from nemo_codert.config.derived import encoder_stride
from nemo_codert.config.values import sub_block
from nemo_codert.data.target_header import TargetFault, TargetHeader, read_header
from nemo_codert.modules.cached_encoder import TARGET

KEY = "model.codert.teacher_cache"
OF_CLASSES = ("encoder.kl", "ctc.kl")  # kinds of terms that stored classes are enough for


def with_stand_in(cfg: DictConfig) -> DictConfig:
    """Return the config of a pair whose `model.encoder` is a stand-in of the stored targets' shape.

    A config that has the stand-in already (of a saved pair), or another kind of teacher, is returned as it is: no
    targets are opened for it.

    Args:
        cfg: the `model` section as given. It is not changed.

    Raises:
        ValueError: targets that cannot be read.

    Example:
        >>> cfg = DictConfig({"codert": {"teacher": "frozen"}})
        >>> with_stand_in(cfg) is cfg
        True
    """
    header = unread_header(cfg)
    if header is None:
        return cfg
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        defaults = sub_block(cfg, "model_defaults")
        width = header.width or defaults.get("enc_hidden") or 1
        stride = round(header.frame_seconds / _feature_seconds(cfg))
        cfg.encoder = {"_target_": TARGET, "d_model": width, "subsampling_factor": stride}
        if header.layers is not None:
            cfg.encoder.n_layers = header.layers
        if defaults:
            cfg.model_defaults.enc_hidden = width
        if "jointnet" in sub_block(cfg, "joint") and "encoder_hidden" in cfg.joint.jointnet:
            cfg.joint.jointnet.encoder_hidden = width
    return cfg


def unread_header(cfg: DictConfig) -> TargetHeader | None:
    """Return the header of the stored targets that a config names and that no stand-in was made from, else None.

    Raises:
        ValueError: targets that cannot be read.
    """
    codert = sub_block(cfg, "codert")
    if codert.get("teacher") != "cached" or not isinstance(codert.get("teacher_cache"), str):
        return None
    if sub_block(cfg, "encoder").get("_target_") == TARGET:
        return None
    try:
        return read_header(codert.teacher_cache)
    except TargetFault as error:
        raise ValueError(f"{KEY}: {error}") from error


def target_problems(cfg: DictConfig, header: TargetHeader, tokenizer: str | None) -> Iterator[str]:
    """Yield the faults of stored targets as the targets of a pair.

    Args:
        cfg: the checked `model` section.
        header: of the targets.
        tokenizer: sha256 of the pair's word pieces, None where it is not known.
    """
    codert, ratio = cfg.codert, header.frame_seconds / _feature_seconds(cfg)
    if abs(ratio - round(ratio)) > 0.01:
        yield f"{KEY} has frames of {1000 * header.frame_seconds:g} ms, no whole number of the pair's feature frames"
    terms = {name: term for name, term in distillation_terms(codert.distillation).items() if term["weight"] > 0}
    reads_classes = not terms or not all(kind_of(term).any_vocabulary for term in terms.values())
    if tokenizer and header.tokenizer and header.tokenizer != tokenizer and reads_classes:
        yield f"{KEY} was made by a teacher with another tokenizer than model.tokenizer: cache with one that has it"
    if header.kind == "top_k":
        yield from _top_k_problems(cfg, header, terms)
        return
    if codert.teacher_checkpoint is None and (reads_classes or codert.share_decoder):
        yield (
            f"{KEY} is encoder output but model.codert.teacher_checkpoint is null: the prediction network and the "
            "joint come from there. Name the model that the targets were made from"
        )
    for name, term in terms.items():
        for number in kind_of(term).layers(term)[1]:
            if number != header.layers:
                yield (
                    f"model.codert.distillation.{name}.layers has layer {number} of the teacher, but {KEY} has the "
                    f"output of its last layer alone, {header.layers}"
                )


def _top_k_problems(cfg: DictConfig, header: TargetHeader, terms: dict[str, DictConfig]) -> Iterator[str]:
    student = encoder_stride(sub_block(cfg.student, "encoder"))
    stride = round(header.frame_seconds / _feature_seconds(cfg))
    if student and stride != student:
        yield (
            f"{KEY} has one frame of classes in {stride} feature frames, the student one in {student}: cache with "
            f"--group {max(1, student // stride)}, or targets of kind encoder"
        )
    if cfg.codert.share_decoder:
        yield f"model.codert.share_decoder is true but {KEY} has no prediction network, only classes: set it to false"
    for name, term in terms.items():
        path, kind = f"model.codert.distillation.{name}", f"{term['at']}.{term['by']}"
        if kind not in OF_CLASSES:
            yield (
                f"{path} compares at {term['at']} by {term['by']}, for which the top_k classes of {KEY} are not "
                "enough: cache with --keep encoder"
            )
            continue
        if term["temperature"] != header.temperature:
            yield (
                f"{path}.temperature is {term['temperature']} but {KEY} was made with {header.temperature}: set it to "
                "that, or cache with --temperature"
            )
        if term.get("prior", "none") != header.prior:
            yield (
                f"{path}.prior is {term.get('prior', 'none')} but {KEY} was made with {header.prior}: set it to that, "
                "or cache with --prior"
            )
        if term["at"] == "ctc" and header.at != "ctc":
            yield f"{path} compares CTC heads but {KEY} has classes of the encoder: cache with --at ctc"


def _feature_seconds(cfg: DictConfig) -> float:
    return float(sub_block(cfg, "preprocessor").get("window_stride") or 0.01)
