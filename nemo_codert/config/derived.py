"""Facts that follow from a config: frame rates, widths, and the branch that a run trains. Imports omegaconf only."""

import copy

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config.values import is_count, sub_block


def lone_branch(cfg: DictConfig) -> str | None:
    """Return the branch that a run of this root config trains alone (`alone` of `checked_config`), None of a pair."""
    return cfg.get("train") if cfg.get("train") in ("student", "teacher") else None


def encoder_stride(encoder: DictConfig) -> int | None:
    """Return feature frames per encoder frame as the config of an encoder states them, None where it does not."""
    factor = encoder.get("subsampling_factor")
    if not is_count(factor):
        return None
    if "subsampling" in encoder and not encoder.get("subsampling"):
        factor = 1  # NeMo's encoders then leave the convolutions out, whatever the factor
    reduction = encoder.get("reduction_factor", 1) if encoder.get("reduction") else 1
    return factor * reduction if is_count(reduction) else None


def rate_problem(teacher_stride: int, student_stride: int) -> str | None:
    """Return why teacher frames cannot be grouped into student frames, None where they can."""
    if student_stride % teacher_stride == 0:
        return None
    return (
        f"model.encoder makes one frame of {teacher_stride} feature frames, model.student.encoder one of "
        f"{student_stride}: teacher frames cannot be grouped into student frames. Make the student's subsampling "
        f"factor the teacher's or a whole multiple of it"
    )


def encoders(cfg: DictConfig, student: DictConfig) -> dict[str, DictConfig | dict]:
    """Return config path -> block of both encoders, the teacher's first, each empty where there is none."""
    return {"model.encoder": sub_block(cfg, "encoder"), "model.student.encoder": sub_block(student, "encoder")}


def encoder_width(encoder: DictConfig | dict) -> int | None:
    """Return output channels as the config of a Conformer or RNNEncoder states them, None where it does not."""
    kind = str(encoder.get("_target_")).rsplit(".", 1)[-1]
    if kind == "RNNEncoder":
        return encoder.get("proj_size")
    if kind != "ConformerEncoder":
        return None
    return encoder.get("feat_out") if is_count(encoder.get("feat_out")) else encoder.get("d_model")


def make_teacher_like_student(cfg: DictConfig, student: DictConfig) -> None:
    """Set the teacher's blocks of a config to its student's: an `ema` teacher is an average of the student's networks.

    Args:
        cfg: the `model` section, which is changed. student: its checked block `student`.
    """
    encoder, decoder, defaults = sub_block(student, "encoder"), student.decoder, sub_block(cfg, "model_defaults")
    with open_dict(cfg):
        cfg.encoder = copy.deepcopy(encoder)
        if decoder is not None:
            cfg.decoder = copy.deepcopy(decoder)
        if student.get("joint") is not None:
            cfg.joint = copy.deepcopy(student.joint)
            if OmegaConf.is_list(student.get("durations")) and OmegaConf.is_dict(cfg.joint):
                cfg.joint.num_extra_outputs = len(student.durations)
        widths = {
            "enc_hidden": encoder_width(encoder),
            "pred_hidden": sub_block(sub_block(cfg, "decoder"), "prednet").get("pred_hidden"),
        }
        if defaults:
            defaults.update({key: width for key, width in widths.items() if width is not None})
