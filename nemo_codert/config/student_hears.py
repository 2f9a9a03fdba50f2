"""Checks and defaults of `model.codert.student_hears`. Imports omegaconf only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf

from nemo_codert.config.values import is_number

PATH = "model.codert.student_hears"
MASKS = ("freq_masks", "time_masks", "freq_width", "time_width", "rect_masks", "rect_time", "rect_freq", "mask_value")


@dataclass
class StudentHearsConfig:
    """`model.codert.student_hears`: what the student's copy of the audio gets, and the teacher's does not."""

    noise: str | None = None  # manifest of noise recordings; text is not needed
    snr: tuple[float, float] = (0.0, 20.0)  # dB of the utterance to the noise, lowest and highest, drawn uniformly
    probability: float = 1.0  # share of the utterances that get noise
    spec_augment: dict[str, Any] | None = None  # arguments of NeMo's SpectrogramAugmentation


def student_hears_settings(block: Mapping[str, Any]) -> StudentHearsConfig:
    """Return a block without faults with its defaults filled in."""
    plain = OmegaConf.to_container(block) if OmegaConf.is_config(block) else dict(block)
    return StudentHearsConfig(**plain)


def student_hears_problems(block: Any) -> Iterator[str]:
    """Yield the faults of the block; None, its default, has none."""
    if block is None:
        return
    if not OmegaConf.is_dict(block):
        yield f"{PATH} is {block!r}, wanted a block with noise, spec_augment or both, or null"
        return
    known = [field.name for field in fields(StudentHearsConfig)]
    yield from (
        f"{PATH}.{key} is not a key of this version, known are {', '.join(known)}" for key in block if key not in known
    )
    noise, masks = block.get("noise"), block.get("spec_augment")
    if noise is None and not masks:
        yield f"{PATH} has neither noise nor spec_augment: give one of them, or set the block to null"
    if noise is not None and not isinstance(noise, str):
        yield f"{PATH}.noise is {noise!r}, wanted the path of a manifest"
    yield from _number_problems(block)
    if masks is not None and not OmegaConf.is_dict(masks):
        yield f"{PATH}.spec_augment is {masks!r}, wanted a block such as {{freq_masks: 2, time_masks: 5}}"
    elif masks:
        yield from (
            f"{PATH}.spec_augment.{key} is {value!r}, wanted a number of one of the keys {', '.join(MASKS)}"
            for key, value in masks.items()
            if key not in MASKS or not is_number(value)
        )


def _number_problems(block: Mapping[str, Any]) -> Iterator[str]:
    snr, probability = block.get("snr", (0, 20)), block.get("probability", 1.0)
    is_pair = (OmegaConf.is_list(snr) or isinstance(snr, tuple)) and len(snr) == 2 and all(map(is_number, snr))
    if not is_pair or not -100 <= snr[0] <= snr[1] <= 100:
        yield f"{PATH}.snr is {snr!r}, wanted the lowest and the highest in dB, between -100 and 100, as in [0, 20]"
    if not is_number(probability) or not 0 < probability <= 1:
        yield f"{PATH}.probability is {probability!r}, wanted a share of the utterances, above 0 and up to 1"
