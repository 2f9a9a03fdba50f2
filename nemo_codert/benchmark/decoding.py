"""Cost of decoding with an exported student: each form of its joint against a stock student's joint.

Encoder output is random, and the decoder alone is timed. All joints emit at the same frames: channel 0 of the encoder
output is a flag that outweighs all else in the choice between blank and token. Every form therefore takes the same
steps, and only the cost of a step differs.
"""

# B batch, T encoder frames, D channels, V vocabulary without blank

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding

FRAMES_PER_TOKEN = 4
BLANK_LOGIT = 30.0  # larger than all other logits, which stay below 5 with initial weights of linear layers

STOCK, ADDITIVE = "stock student", "exported, additive joint kept"
FORMS = {f"exported, {form}": form for form in ("exact", "compact", "narrow")}  # forms of `to_stock_joint`


@dataclass(frozen=True)
class DecodingSettings:
    """B utterances of T frames, and the student's sizes: the encoder's D channels, V, and hidden channels."""

    batch: int = 16
    frames: int = 150
    enc_hidden: int = 144
    vocabulary: int = 1024
    pred_hidden: int = 640
    joint_hidden: int = 640

    def __str__(self) -> str:
        return (
            f"greedy_batch, {self.batch} x {self.frames} frames, a token in {FRAMES_PER_TOKEN}, V {self.vocabulary}, "
            f"prediction {self.pred_hidden}, stock joint {self.joint_hidden}"
        )


@dataclass(frozen=True)
class DecodingCase:
    """One row, by name. See `measure.Case`."""

    name: str
    settings: DecodingSettings
    device: str = "cpu"
    slow: bool = False

    def prepare(self) -> Callable[[], list[tuple[list[int], list[int]]]]:
        """Build prediction network and joint; the call decodes the batch to (tokens, frames) of each utterance."""
        from nemo.collections.asr.parts.submodules.rnnt_greedy_decoding import GreedyBatchedRNNTInfer

        decoder, joint = _decoder(self.settings).to(self.device), _joint(self.name, self.settings).to(self.device)
        infer = GreedyBatchedRNNTInfer(
            decoder_model=decoder,
            joint_model=joint,
            blank_index=self.settings.vocabulary,
            max_symbols_per_step=1,
            use_cuda_graph_decoder=self.device == "cuda",
        )
        encoded, encoded_len = (each.to(self.device) for each in make_encoded(self.settings))

        def run() -> list[tuple[list[int], list[int]]]:
            (hypotheses,) = infer(encoder_output=encoded, encoded_lengths=encoded_len)
            return [(_integers(each.y_sequence), _integers(each.timestamp)) for each in hypotheses]

        return run


def _integers(values: Any) -> list[int]:
    return [int(value) for value in values]


def decoding_cases(settings: DecodingSettings, device: str) -> list[DecodingCase]:
    """Return the stock student, then every form of the exported one."""
    return [DecodingCase(name, settings, device) for name in (STOCK, ADDITIVE, *FORMS)]


def decoding_rows(
    settings: DecodingSettings, device: str, measuring: MeasureSettings
) -> tuple[list[CostRow], list[Finding]]:
    """Measure rows with their ratio to the stock student, and speeds compared with the targets.

    Raises:
        RuntimeError: the forms did not take the same steps, so that their times cannot be compared.
    """
    measured = measure(decoding_cases(settings, device), measuring, "decoding")
    check_same_steps({name: result.first for name, result in measured.items()})
    seconds = {name: result.seconds for name, result in measured.items()}
    sizes = {"batch": settings.batch, "frames": settings.frames, "vocabulary": settings.vocabulary}
    rows = [
        CostRow(
            part="decoding",
            setting=str(settings),
            name=name,
            sizes=sizes,
            seconds=result.seconds,
            ratio=paired_ratio([result.seconds], [seconds[STOCK]]),
            ratio_to=STOCK,
            memory=result.memory,
        )
        for name, result in measured.items()
    ]
    speeds = {name: paired_ratio([seconds[STOCK]], [own]) for name, own in seconds.items()}
    best = max(FORMS, key=speeds.get)
    return rows, [
        Finding(f"speed of the best stock form ({FORMS[best]}), of the stock student's", speeds[best], at_least=0.9),
        Finding("speed with the additive joint kept, of the stock student's", speeds[ADDITIVE], at_least=1.0),
    ]


def check_same_steps(results: dict[str, list[tuple[list[int], list[int]]]]) -> None:
    """Check that all cases emit at the same frames, and all forms of the exported student the same tokens.

    Raises:
        RuntimeError: frames or tokens differ, or nothing was emitted.
    """
    for name, utterances in results.items():
        frames = [utterance[1] for utterance in utterances]
        if frames != [utterance[1] for utterance in results[STOCK]] or not any(frames):
            raise RuntimeError(f"{name} emits at other frames than {STOCK}: these times cannot be compared")
        if name != STOCK and utterances != results[ADDITIVE]:
            raise RuntimeError(f"{name} emits other tokens than {ADDITIVE}: not a rewriting of the same joint")


# ---- networks ------------------------------------------------------------------------------------------------------


def make_encoded(settings: DecodingSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw normal encoder output [B, D, T], channel 0 being 1 at a random quarter of the frames and -1 elsewhere."""
    generator = torch.Generator().manual_seed(1)
    encoded = torch.randn(settings.batch, settings.enc_hidden, settings.frames, generator=generator)
    order = torch.rand(settings.batch, settings.frames, generator=generator).argsort(1)
    emits = order < settings.frames // FRAMES_PER_TOKEN  # the same number in every utterance
    encoded[:, 0] = emits.float() * 2 - 1
    return encoded, torch.full((settings.batch,), settings.frames)


def _decoder(settings: DecodingSettings) -> nn.Module:
    from nemo.collections.asr.modules import RNNTDecoder

    torch.manual_seed(0)
    return RNNTDecoder(
        prednet={"pred_hidden": settings.pred_hidden, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        vocab_size=settings.vocabulary,
        normalization_mode=None,
        blank_as_pad=True,
    ).eval()


def _joint(name: str, settings: DecodingSettings) -> nn.Module:
    from nemo.collections.asr.modules import RNNTJoint

    from nemo_codert.modules import AdditiveRNNTJoint, to_stock_joint

    torch.manual_seed(0)
    jointnet = {
        "encoder_hidden": settings.enc_hidden,
        "pred_hidden": settings.pred_hidden,
        "joint_hidden": settings.joint_hidden,
        "activation": "relu",
        "dropout": 0.0,
    }
    joint_class = RNNTJoint if name == STOCK else AdditiveRNNTJoint
    vocabulary = [str(piece) for piece in range(settings.vocabulary)]
    joint = joint_class(jointnet=copy.deepcopy(jointnet), num_classes=settings.vocabulary, vocabulary=vocabulary)
    obey_flag(joint)
    if name not in FORMS:
        return joint.eval()
    # Noise has no bound, unlike an encoder's output, so the bound is its largest values. LSTM output is in [-1, 1].
    ranges = {
        "encoder_range": make_encoded(settings)[0].abs().amax((0, 2)),
        "prediction_range": torch.ones(settings.pred_hidden),
    }
    return to_stock_joint(joint, FORMS[name], **ranges).eval()


@torch.no_grad()
def obey_flag(joint: nn.Module) -> None:
    """Set weights such that encoder channel 0 alone makes the blank logit: -BLANK_LOGIT for 1, BLANK_LOGIT for -1.

    joint: additive, or stock with ReLU, whose hidden channel 0 carries the flag.
    """
    from nemo_codert.modules import AdditiveRNNTJoint

    if isinstance(joint, AdditiveRNNTJoint):
        for layer in (joint.enc, joint.pred):
            layer.weight[-1], layer.bias[-1] = 0.0, 0.0
        joint.enc.weight[-1, 0] = -BLANK_LOGIT
        return
    for layer in (joint.enc, joint.pred):
        layer.weight[0], layer.bias[0] = 0.0, 0.0
    joint.enc.weight[0, 0] = 1.0  # relu(flag) is 1 or 0
    output = joint.joint_net[-1]
    output.weight[:, 0], output.weight[-1] = 0.0, 0.0
    output.weight[-1, 0], output.bias[-1] = -2 * BLANK_LOGIT, BLANK_LOGIT
