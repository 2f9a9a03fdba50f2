"""A student that starts as an excerpt of its teacher: evenly spaced Conformer layers, and every other part that fits.

A part (the subsampling, a projection of the joint, ...) is copied whole or starts from scratch.
"""

from typing import Any

import torch
from nemo.collections.asr.modules import ConformerEncoder

from nemo_codert.modules.encoder_logits import num_token_classes
from nemo_codert.modules.transducer import Transducer

KEY = "model.student.init_from_teacher is true but"
SHOWN = 3  # differing tensors that a message names


def spaced_layers(of_teacher: int, of_student: int) -> list[int]:
    """Return the teacher layers that the student layers start from, first and last among them; of one, the last.

    "Maximally spaced" layers as in Distil-Whisper (arXiv:2311.00430).
    """
    if of_student == 1:
        return [of_teacher - 1]
    return [layer * (of_teacher - 1) // (of_student - 1) for layer in range(of_student)]


@torch.no_grad()
def start_from_teacher(
    teacher: Transducer, student: Transducer, *, decoder: bool, joint: bool = True
) -> dict[str, Any]:
    """Copy evenly spaced layers of a Conformer into a smaller one, and of the rest each part whose shapes agree.

    Args:
        decoder: False leaves the prediction network and `joint.pred` (the teacher's own modules) alone.
        joint: False leaves the joint alone, of which the teacher then has no trained weights.

    Returns:
        As `load_networks`; besides, `left` names the parts that start from scratch.

    Raises:
        ValueError: more layers than the teacher has, or layers of other shapes.
    """
    layers = _paired_layers(teacher.encoder, student.encoder)
    networks = ("encoder", *(("joint",) if joint else ()), *(("decoder",) if decoder else ()))
    wanted = _named_tensors(student, networks)
    outputs = num_token_classes(teacher.joint) + student.joint.num_extra_outputs
    offered = _offered(teacher, layers, outputs, joint=type(teacher.joint) is type(student.joint))
    copied, left = {}, []
    for part in dict.fromkeys(map(_part_of, wanted)):
        own = {name: value for name, value in wanted.items() if _part_of(name) == part}
        differing = [name for name in own if name not in offered or offered[name].shape != own[name].shape]
        if differing and part == "encoder.layers":
            raise ValueError(_shape_message({name: (own[name], offered.get(name)) for name in differing}))
        if differing:
            left.append(part)
        else:
            copied |= own
    for name, value in copied.items():
        value.copy_(offered[name])
    return {
        "source": f"encoder layers {', '.join(map(str, layers))} of its teacher's {len(teacher.encoder.layers)}",
        "tensors": len(copied),
        "parameters": sum(value.numel() for value in copied.values()),
        "keys": sorted(copied),
        "left": left,
    }


def _paired_layers(teacher: ConformerEncoder, student: ConformerEncoder) -> list[int]:
    if len(student.layers) > len(teacher.layers):
        raise ValueError(
            f"{KEY} model.student.encoder has {len(student.layers)} layers and model.encoder {len(teacher.layers)}: "
            "give the student as many or fewer"
        )
    return spaced_layers(len(teacher.layers), len(student.layers))


def _named_tensors(transducer: Transducer, networks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return tensors under the names of a stock model, sharing memory with the networks."""
    return {
        f"{network}.{name}": value
        for network in networks
        for name, value in getattr(transducer, network).state_dict().items()
    }


def _offered(teacher: Transducer, layers: list[int], outputs: int, *, joint: bool) -> dict[str, torch.Tensor]:
    """Return the teacher's tensors under the student's names.

    Args:
        outputs: rows of the joint's output layer that the student has: for an RNN-T the tokens of a TDT joint.
        joint: False leaves out the joint, whose weights mean nothing in one of another class.
    """
    tensors = _named_tensors(teacher, ("encoder", "joint", "decoder") if joint else ("encoder", "decoder"))
    offered = {name: value for name, value in tensors.items() if _part_of(name) != "encoder.layers"}
    offered |= {name: value[:outputs] for name, value in offered.items() if _part_of(name) == "joint.joint_net"}
    for of_student, of_teacher in enumerate(layers):
        prefix = f"encoder.layers.{of_teacher}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        offered |= {f"encoder.layers.{of_student}.{name}": value for name, value in own.items()}
    return offered


def _part_of(name: str) -> str:
    """Return a tensor's part: `encoder.layers.0.norm_out.weight` -> `encoder.layers`; the decoder is one part."""
    return "decoder" if name.startswith("decoder.") else ".".join(name.split(".")[:2])


def _shape_message(differing: dict[str, tuple[torch.Tensor, torch.Tensor | None]]) -> str:
    shapes = [
        f"{name}: {list(own.shape)} in the student, {'absent' if other is None else list(other.shape)} in the teacher"
        for name, (own, other) in list(differing.items())[:SHOWN]
    ]
    return (
        f"{KEY} {len(differing)} tensors of the encoder layers have other shapes:\n  - " + "\n  - ".join(shapes) + "\n"
        "Give model.student.encoder the d_model, n_heads, ff_expansion_factor, conv_kernel_size and conv_norm_type of "
        "model.encoder, or set init_from_teacher to false"
    )
