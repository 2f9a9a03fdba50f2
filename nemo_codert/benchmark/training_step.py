"""Cost of a training step: a stock teacher, a stock student, and a pair that trains both in tandem.

The stock models are NeMo's own class with its joint and its loss. The pair (additive joint, shared prediction network,
distillation) is also run without its losses, driven by fixed gradients, to measure the networks alone.
"""

# B batch, S samples, T encoder frames, U target tokens, V vocabulary without blank

import random
import string
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding

SAMPLE_RATE = 16000  # Hz
HEADS = 4  # attention heads of both encoders, a divisor of their channels
WINDOW_STRIDE, FRAME_SECONDS = 0.01, 0.08  # seconds between feature frames, and between frames of both encoders
CLIP = 5.0  # norm
LEARNING_RATE = 1e-6  # small: a few hundred steps on one batch of noise hardly change the networks

STOCK_TEACHER, STOCK_STUDENT, TANDEM = "stock teacher step", "stock student step", "tandem step"
AT_JOINT = "tandem step, compared at the joint"
NETWORKS = "tandem: its networks, no loss, no optimizer"
OPTIMIZER = "tandem: clipping and optimizer alone"
STOCK_TOGETHER = f"{STOCK_TEACHER} + {STOCK_STUDENT}"

MADE_UP_WORDS = 6000  # enough for 4096 pieces


@dataclass(frozen=True)
class StepSettings:
    """Sizes of a step: B utterances of `seconds` of noise with U tokens each, and of the two Conformers.

    teacher, student: layers and channels. pred_hidden, joint_hidden: channels (the second of the stock joints only).
    """

    batch: int = 8
    seconds: float = 12.0
    tokens: int = 40
    vocabulary: int = 1024
    teacher: tuple[int, int] = (8, 256)
    student: tuple[int, int] = (4, 144)
    pred_hidden: int = 640
    joint_hidden: int = 640

    def __str__(self) -> str:
        teacher, student = ("x".join(map(str, size)) for size in (self.teacher, self.student))
        return f"{self.batch} x {self.seconds:g} s, {self.tokens} tokens, V {self.vocabulary}, {teacher} and {student}"


@dataclass(frozen=True)
class StepCase:
    """One row, by name. See `measure.Case`."""

    name: str
    settings: StepSettings
    device: str = "cpu"

    @property
    def slow(self) -> bool:
        """True for NeMo's loss on the CPU."""
        return self.device == "cpu" and self.name in (STOCK_TEACHER, STOCK_STUDENT)

    def prepare(self) -> Callable[[], Any]:
        """Build the model and return one training step, or the part of a step that the row measures."""
        torch.manual_seed(0)
        batch = make_step_batch(self.settings, self.device)
        if self.name in (STOCK_TEACHER, STOCK_STUDENT):
            return stock_step(stock_model(self.settings, self.name).to(self.device).train(), batch)
        term = {"joint": {"at": "joint", "weight": 0.1}} if self.name == AT_JOINT else {"weight": 0.1}
        pair = _pair(self.settings, term).to(self.device).train()
        return {TANDEM: pair_step, AT_JOINT: pair_step, NETWORKS: _networks, OPTIMIZER: _optimizer}[self.name](
            pair, batch
        )


def step_cases(settings: StepSettings, device: str) -> list[StepCase]:
    """Return the cases of all rows, in the order of the table."""
    names = STOCK_TEACHER, STOCK_STUDENT, TANDEM, AT_JOINT, NETWORKS, OPTIMIZER
    return [StepCase(name, settings, device) for name in names]


def step_rows(settings: StepSettings, device: str, measuring: MeasureSettings) -> tuple[list[CostRow], list[Finding]]:
    """Measure rows with ratios to the two stock steps together, and the findings of the tandem step.

    On a GPU the tandem step is compared with the stock teacher's step alone; on the CPU, where NeMo's loss is slow,
    with both stock steps.
    """
    measured = measure(step_cases(settings, device), measuring, "training steps")
    seconds = {name: result.seconds for name, result in measured.items()}
    stock = [seconds[STOCK_TEACHER], seconds[STOCK_STUDENT]]
    sizes = {"batch": settings.batch, "tokens": settings.tokens, "vocabulary": settings.vocabulary}
    rows = [
        CostRow(
            part="step",
            setting=str(settings),
            name=name,
            sizes=sizes,
            seconds=result.seconds,
            ratio=paired_ratio([result.seconds], stock),
            ratio_to=STOCK_TOGETHER,
            memory=result.memory,
        )
        for name, result in measured.items()
    ]
    tandem, networks = [seconds[TANDEM]], [seconds[NETWORKS]]
    both = "tandem step / (its networks + clipping and optimizer)"
    alone = "tandem step, optimizer included, / its networks alone"
    on_gpu = device == "cuda"
    of_networks = None if on_gpu else 1.05
    return rows, [
        Finding(f"tandem step / ({STOCK_TOGETHER})", paired_ratio(tandem, stock), at_most=None if on_gpu else 0.16),
        Finding(f"tandem step / {STOCK_TEACHER}", paired_ratio(tandem, stock[:1]), at_most=1.0 if on_gpu else None),
        Finding(both, paired_ratio(tandem, [*networks, seconds[OPTIMIZER]]), at_most=of_networks),
        Finding(alone, paired_ratio(tandem, networks), at_most=of_networks),
        Finding(f"{AT_JOINT} / {TANDEM}", paired_ratio([seconds[AT_JOINT]], tandem), at_most=of_networks),
    ]


# ---- what is run ---------------------------------------------------------------------------------------------------


def make_step_batch(settings: StepSettings, device: str) -> tuple[torch.Tensor, ...]:
    """Draw noise: signal [B, S], signal_len [B] in samples, transcript [B, U], transcript_len [B], full lengths."""
    generator = torch.Generator().manual_seed(0)
    samples = int(settings.seconds * SAMPLE_RATE)
    signal = 0.1 * torch.randn(settings.batch, samples, generator=generator)
    transcript = torch.randint(0, settings.vocabulary, (settings.batch, settings.tokens), generator=generator)
    lengths = [torch.full((settings.batch,), length) for length in (samples, settings.tokens)]
    return tuple(each.to(device) for each in (signal, lengths[0], transcript, lengths[1]))


def stock_step(model: Any, batch: tuple[torch.Tensor, ...]) -> Callable[[], torch.Tensor]:
    """Return a whole step of NeMo's model, with the loss of `training_step` but without its logging and decoding.

    Args:
        model: in training mode.
        batch: as `make_step_batch` draws it.
    """
    signal, signal_len, transcript, transcript_len = batch

    def loss_of() -> torch.Tensor:
        encoded, encoded_len = model(input_signal=signal, input_signal_length=signal_len)
        decoded, target_len, _ = model.decoder(targets=transcript, target_length=transcript_len)
        if model.joint.fuse_loss_wer:
            return model.joint(
                encoder_outputs=encoded,
                decoder_outputs=decoded,
                encoder_lengths=encoded_len,
                transcripts=transcript,
                transcript_lengths=target_len,
                compute_wer=False,
            )[0]
        joint = model.joint(encoder_outputs=encoded, decoder_outputs=decoded)
        return model.loss(log_probs=joint, targets=transcript, input_lengths=encoded_len, target_lengths=target_len)

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    return _step(optimizer, loss_of, lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))


def pair_step(pair: Any, batch: tuple[Any, ...]) -> Callable[[], torch.Tensor]:
    """Return a whole step of a pair, clipping and AdamW included.

    Args:
        pair: in training mode.
        batch: as `make_step_batch` draws it; with the utterances' ids where the teacher is stored targets.
    """
    optimizer = torch.optim.AdamW(pair.parameters(), lr=LEARNING_RATE)
    clip = _pair_clipping(pair, optimizer)
    return _step(optimizer, lambda: pair.training_step(batch, 0)["loss"], clip)


def _step(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor], clip: Callable[[], Any]
) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        loss = loss_of()
        loss.backward()
        clip()
        optimizer.step()
        optimizer.zero_grad()  # last, so that no gradient is held between steps
        return loss.detach()

    return step


def _pair_clipping(pair: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    return lambda: pair.configure_gradient_clipping(optimizer, CLIP, "norm")


def _networks(pair: Any, batch: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """Return a pass of features, encoders, prediction network and projections, backward from fixed gradients."""
    from nemo_codert.modules import encoder_logits, prediction_logits

    signal, signal_len, transcript, transcript_len = batch
    gradients: list[torch.Tensor] = []

    def run() -> None:
        features, features_len = pair.extract_features(signal, signal_len)
        student = pair.student_transducer.run(features, features_len)
        teacher = pair.teacher_transducer.run(features, features_len)
        decoded = pair.decoder(targets=transcript, target_length=transcript_len)[0]  # the student's is the same
        logits = [
            encoder_logits(pair.student_joint, student.encoded),  # [B, T, V+1]
            encoder_logits(pair.joint, teacher.encoded),  # [B, T, V+1]
            prediction_logits(pair.joint, decoded),  # [B, U+1, V+1]
        ]
        if not gradients:
            gradients.extend(1e-3 * torch.randn_like(each) for each in logits)
        torch.autograd.backward(logits, gradients)
        pair.zero_grad()

    return run


def _optimizer(pair: Any, batch: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """Return a step of clipping of both branches and AdamW, on gradients that are kept."""
    optimizer = torch.optim.AdamW(pair.parameters(), lr=LEARNING_RATE)
    clip = _pair_clipping(pair, optimizer)
    for parameter in pair.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)

    def run() -> None:
        clip()
        optimizer.step()

    return run


# ---- models --------------------------------------------------------------------------------------------------------


def stock_model(settings: StepSettings, name: str) -> Any:
    """Return NeMo's model with its own joint and loss, of the size of `STOCK_TEACHER` or `STOCK_STUDENT`."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.config.stock_checks import STOCK_JOINT
    from nemo_codert.models import student_config, teacher_config

    stock_config = teacher_config if name == STOCK_TEACHER else student_config
    return EncDecRNNTBPEModel(stock_config(pair_config(settings, STOCK_JOINT, rnnt_loss="nemo")))


def _pair(settings: StepSettings, distillation: dict[str, Any]) -> Any:
    from nemo_codert.config.stock_checks import ADDITIVE_JOINT
    from nemo_codert.models import EncDecCoDERTBPEModel

    cfg = pair_config(settings, ADDITIVE_JOINT, rnnt_loss="auto")
    cfg.codert.distillation = distillation
    return EncDecCoDERTBPEModel(cfg)


def pair_config(settings: StepSettings, joint: str, rnnt_loss: str) -> Any:
    """Return the `model` section of a pair of these sizes: conf/base.yaml with strategy shared_kd and SpecAugment."""
    from omegaconf import OmegaConf

    return OmegaConf.create(
        {
            "sample_rate": SAMPLE_RATE,
            "log_prediction": False,
            "compute_eval_loss": False,
            "model_defaults": {
                "enc_hidden": settings.teacher[1],
                "pred_hidden": settings.pred_hidden,
                "joint_hidden": settings.joint_hidden,
            },
            "tokenizer": {"dir": made_up_tokenizer(settings.vocabulary).name, "type": "bpe"},
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "sample_rate": SAMPLE_RATE,
                "normalize": "per_feature",
                "window_size": 0.025,
                "window_stride": WINDOW_STRIDE,
                "features": 80,
                "n_fft": 512,
                "dither": 1e-5,
                "pad_to": 0,
            },
            "spec_augment": {
                "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
                "freq_masks": 2,
                "time_masks": 2,
                "freq_width": 15,
                "time_width": 0.05,
            },
            "encoder": _conformer(*settings.teacher),
            "student": {"encoder": _conformer(*settings.student)},
            "codert": {"share_decoder": True, "rnnt_loss": rnnt_loss, "distillation": {"weight": 0.1}},
            "decoder": {
                "_target_": "nemo.collections.asr.modules.RNNTDecoder",
                "normalization_mode": None,
                "random_state_sampling": False,
                "blank_as_pad": True,
                "prednet": {"pred_hidden": settings.pred_hidden, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
            },
            "joint": {
                "_target_": joint,
                "log_softmax": None,
                "jointnet": {"joint_hidden": settings.joint_hidden, "activation": "relu", "dropout": 0.0},
            },
            "decoding": {
                "strategy": "greedy_batch",
                "greedy": {"max_symbols": 10, "use_cuda_graph_decoder": False},
                "beam": {"beam_size": 4},
            },
            "loss": {"loss_name": "warprnnt_numba", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
            "optim": {"name": "adamw", "lr": LEARNING_RATE},
        }
    )


def _conformer(layers: int, channels: int) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": 80,
        "feat_out": -1,
        "n_layers": layers,
        "d_model": channels,
        "subsampling": "dw_striding",
        "subsampling_factor": round(FRAME_SECONDS / WINDOW_STRIDE),
        "subsampling_conv_channels": -1,  # the width of d_model
        "causal_downsampling": False,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": HEADS,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": 31,
        "conv_norm_type": "batch_norm",
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_emb": 0.0,
        "dropout_att": 0.1,
    }


@lru_cache
def made_up_tokenizer(vocabulary: int) -> tempfile.TemporaryDirectory:
    """Train a tokenizer of that many pieces on made-up words, in a folder that is removed when the process ends.

    Raises:
        ValueError: fewer or more pieces than the words support.
    """
    from nemo_codert.data.tokenizer import train_tokenizer

    generator = random.Random(0)
    words = [
        "".join(generator.choices(string.ascii_lowercase, k=generator.randint(3, 9))) for _ in range(MADE_UP_WORDS)
    ]
    folder = tempfile.TemporaryDirectory(prefix="nemo_codert_benchmark_")
    train_tokenizer([" ".join(words[i : i + 10]) for i in range(0, len(words), 10)], Path(folder.name), vocabulary)
    return folder
