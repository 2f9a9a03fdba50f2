"""Measures of a teacher before training: its word errors, the information in its encoder logits, and what misleads.

A stock teacher was never trained with its prediction projection masked, so its "encoder logits" may carry little
information: the entropy and the agreement measure it, with and without the utterance's mean prediction logits, which a
term at the encoder may add (`prior: mean_prediction`). Word errors are those of the teacher's own decoding; a TDT
model decodes by durations, but its logits are the joint's outputs for tokens, read as those of an RNN-T.
B batch, T encoder frames, U target tokens, V vocabulary without blank.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding
from omegaconf import OmegaConf
from torch import nn

from nemo_codert.analysis.alignment import align, passed_logits
from nemo_codert.analysis.measures import entropy
from nemo_codert.analysis.term_gradients import TermGradient, term_gradients
from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.evaluation.word_errors import UNITS, metric_of
from nemo_codert.evaluation.word_errors import WER as WER_NAME
from nemo_codert.losses import valid_frames
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch

BLANK = "blank"
# Shares of the probability, in the mean over frames, above which one class leaves little else to compare. A trained
# encoder may well give blank most of it (0.26 to 0.49 seen on spoken digits), but no word piece (0.06 to 0.10 seen).
MOST_OF_BLANK, MOST_OF_A_PIECE = 0.99, 0.5


@torch.no_grad()
def teacher_report(model: EncDecCoDERTBPEModel, batches: Iterable[Any], max_batches: int = 50) -> dict[str, Any]:
    """Measure a pair's teacher on development data, and the gradients of the terms on its first batch.

    Nothing of the pair changes.

    Args:
        batches: a validation dataloader, or several of which the first counts.
        max_batches: number of batches for entropies and agreement; word errors are measured on all.

    Returns:
        Tensors and parameters loaded, words and `wer` (of characters where `metric` is CER); `encoder_logits`: their
        source (`joint`, `TDT joint`, `CTC head`); `ctc_wer`: WER of the head's greedy text; per frame, in nats,
        `encoder_entropy`, `joint_entropy`;
        `encoder_joint_top1_agreement`: share of frames in which the encoder logits and the joint have the same
        likeliest class, at the joint node that the transcript's alignment most likely passes; the same two
        `..._with_prior`, of encoder logits plus the utterance's mean prediction logits (not of a CTC head);
        `encoder_largest_class` and `encoder_largest_share`: the class with most of the probability in the mean over
        frames, and how much; the mode of the teacher's modules; `term_gradients`: name of a distillation term -> see
        `TermGradient.largest`; `warnings`: sentences with the names of terms. Of a teacher without a
        decoder neither word errors nor logits are measured, and `encoder_logits` is `none`.
    """
    loader = iter(batches[0] if isinstance(batches, list) else batches)
    first, measured = list(islice(loader, 1)), {"encoder_logits": "none"}
    with _evaluating(model):
        gradients = term_gradients(model, Batch.of(_tensors(model, first[0]))) if first else {}
        if model.teacher_transcribes:
            measured = _measured(model, chain(first, loader), max_batches)
    return {
        **model.loaded.get("teacher", {}),
        **measured,
        **_modes(model),
        "term_gradients": {name: gradient.largest for name, gradient in gradients.items()},
        "warnings": [*_share_warnings(model, measured), *_gradient_warnings(model, gradients)],
    }


@contextmanager
def _evaluating(model: EncDecCoDERTBPEModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _tensors(model: EncDecCoDERTBPEModel, batch: Sequence[Any]) -> list[torch.Tensor]:
    return [part.to(model.device) for part in batch[:4]]


def _measured(model: EncDecCoDERTBPEModel, loader: Iterable[Any], max_batches: int) -> dict[str, Any]:
    totals = Counter()
    metrics = {"": model.wer}
    if model.teacher_transducer.ctc_head is not None:
        metrics["ctc_"] = _ctc_wer(model)
    model.wer.reset()
    try:
        for index, batch in enumerate(loader):
            _measure(model, _tensors(model, batch), metrics, totals, frames_too=index < max_batches)
    finally:
        model.wer.reset()
    frames = max(totals.pop("frames"), 1.0)
    return {
        "metric": metric_of(model.cfg),
        "wer": totals["errors"] / max(totals["words"], 1.0),
        "words": int(totals["words"]),
        **({"ctc_wer": totals["ctc_errors"] / max(totals["words"], 1.0)} if "ctc_" in metrics else {}),
        "encoder_logits": _source_of_logits(model),
        "encoder_entropy": totals["encoder_entropy"] / frames,
        "joint_entropy": totals["joint_entropy"] / frames,
        "encoder_joint_top1_agreement": totals["agreement"] / frames,
        **_with_prior(model, totals, frames),
        **_largest_class(model, totals["probability"] / frames),
    }


def _with_prior(model: EncDecCoDERTBPEModel, totals: Counter, frames: float) -> dict[str, float]:
    if model.teacher_transducer.ctc_head is not None:
        return {}
    return {
        "encoder_entropy_with_prior": totals["entropy_with_prior"] / frames,
        "encoder_joint_top1_agreement_with_prior": totals["agreement_with_prior"] / frames,
    }


def _largest_class(model: EncDecCoDERTBPEModel, mean: torch.Tensor | float) -> dict[str, Any]:
    """Return the class with most of the mean probability [V+1], and its share; 0 where no frame was measured."""
    share, index = torch.as_tensor(mean).reshape(-1).max(0)
    name = [*model.joint.vocabulary, BLANK][int(index)]
    return {"encoder_largest_class": name, "encoder_largest_share": float(share)}


def _share_warnings(model: EncDecCoDERTBPEModel, measured: dict[str, Any]) -> Iterator[str]:
    """Yield one warning for each term that compares encoder logits of which one class has nearly all."""
    name, share = measured.get("encoder_largest_class"), measured.get("encoder_largest_share", 0.0)
    if share <= (MOST_OF_BLANK if name == BLANK else MOST_OF_A_PIECE):
        return
    of_joint = "" if model.teacher_transducer.ctc_head is None else " of teacher_logits: joint"
    for spec in (term.spec for term in model.criteria.values()):
        if _is_plain(spec):
            yield (
                f"model.codert.distillation.{spec.name} compares the teacher's encoder logits, in which one class, "
                f"{name!r}, has {share:.1%} of the probability: they teach little else. Consider "
                f"prior: mean_prediction{of_joint}, or at: joint."
            )


def _is_plain(spec: CriterionSpec) -> bool:
    return (spec.kind, spec.options.get("prior")) == ("encoder.kl", "none")


def _gradient_warnings(model: EncDecCoDERTBPEModel, gradients: dict[str, TermGradient]) -> Iterator[str]:
    for name, gradient in gradients.items():
        if gradient.silent:
            spec = model.criteria[name].spec
            remedies = ["prior: mean_prediction", "at: joint"] if _is_plain(spec) else ["another at"]
            remedies += ["a smaller frame_shift"] if spec.options.get("frame_shift") else []
            yield (
                f"model.codert.distillation.{name} has no gradient: its largest element at the student is "
                f"{gradient.largest:.1e}, and none with other features. The term teaches nothing: one class may have "
                f"all of the probability on both sides, or no frames be compared. Consider {' or '.join(remedies)}."
            )


def format_teacher_report(report: dict[str, Any]) -> str:
    """Format the report as readable lines."""
    opening = (
        f"Teacher {report.get('source', '(not loaded)')}: {report.get('tensors', 0)} tensors, "
        f"{report.get('parameters', 0):,} parameters loaded, none missing, none unexpected"
    )
    closing = (
        f"  in training: {report['mode']}; dropout {report['dropout']}, batch-norm statistics "
        f"{report['batch_norm_statistics']}, SpecAugment {report['spec_augment']}"
    )
    if report["encoder_logits"] == "none":
        nothing = "  no decoder was loaded, for terms at hidden layers or CTC heads: WER and logits cannot be measured"
        return "\n".join([opening, nothing, closing])
    metric = report.get("metric", WER_NAME)
    ctc = f", of its CTC head's greedy text {report['ctc_wer']:.2%}" if "ctc_wer" in report else ""
    source = "" if report["encoder_logits"] == "joint" else f" of its {report['encoder_logits']}"
    prior = []
    if "encoder_entropy_with_prior" in report:
        prior = [
            f"  with the mean prediction as prior: entropy {report['encoder_entropy_with_prior']:.3f} nats a frame, "
            f"agreement {report['encoder_joint_top1_agreement_with_prior']:.1%}"
        ]
    lines = [
        opening,
        f"  {metric} on the dev set {report['wer']:.2%}{ctc} over {report['words']} {UNITS[metric]}",
        f"  encoder logits{source}: entropy {report['encoder_entropy']:.3f} nats a frame (its joint "
        f"{report['joint_entropy']:.3f}), top-1 agreement with its joint {report['encoder_joint_top1_agreement']:.1%}",
        *prior,
        f"  class with most of the probability: {report['encoder_largest_class']!r}, "
        f"{report['encoder_largest_share']:.1%} in the mean over frames",
        closing,
    ]
    return "\n".join(lines)


def _source_of_logits(model: EncDecCoDERTBPEModel) -> str:
    if model.teacher_transducer.ctc_head is not None:
        return "CTC head"
    return "TDT joint" if model.joint.num_extra_outputs else "joint"


def _ctc_wer(model: EncDecCoDERTBPEModel) -> WER:
    """Measure the WER of the greedy text of a hybrid teacher's CTC head."""
    decoding = CTCBPEDecoding(OmegaConf.create({"strategy": "greedy_batch"}), tokenizer=model.tokenizer)
    return WER(decoding=decoding, use_cer=model.cfg.get("use_cer", False), log_prediction=False)


def _measure(
    model: EncDecCoDERTBPEModel,
    batch: list[torch.Tensor],
    metrics: dict[str, WER],
    totals: Counter,
    frames_too: bool,
) -> None:
    signal, signal_len, transcript, transcript_len = batch
    features, features_len = model.extract_features(signal, signal_len)
    teacher = model.teacher_transducer
    output = teacher.run(features, features_len, transcript, transcript_len)
    for prefix, metric in metrics.items():
        metric.update(
            predictions=teacher.ctc_head(encoder_output=output.encoded) if prefix else output.encoded,
            predictions_lengths=output.encoded_len,
            targets=transcript,
            targets_lengths=transcript_len,
        )
        _, errors, words = metric.compute()  # counts of one batch: NeMo's metric does not add up over updates
        totals[f"{prefix}errors"] += float(errors)
        totals[f"{prefix}words"] += float(words)
    if not frames_too:
        return
    alignment = align(output)
    valid = valid_frames(output.encoded_len, output.encoder_side.shape[1])
    of_encoder = output.encoder_logits[valid]  # [N, V+1], N frames
    of_joint = passed_logits(output, alignment)[valid]  # [N, V+1]
    totals["frames"] += len(of_joint)
    totals["encoder_entropy"] += float(entropy(of_encoder).sum())
    totals["joint_entropy"] += float(entropy(of_joint).sum())
    totals["agreement"] += float((of_joint.argmax(-1) == of_encoder.argmax(-1)).sum())
    totals["probability"] += of_encoder.double().softmax(-1).sum(0)
    if teacher.ctc_head is None:
        with_prior = (output.encoder_logits + output.mean_prediction)[valid]
        totals["entropy_with_prior"] += float(entropy(with_prior).sum())
        totals["agreement_with_prior"] += float((of_joint.argmax(-1) == with_prior.argmax(-1)).sum())


def _modes(model: EncDecCoDERTBPEModel) -> dict[str, str]:
    frozen = model.teacher_is_frozen
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.encoder.modules())
    return {
        "mode": "eval, no gradients" if frozen else "training, with gradients",
        "dropout": "off" if frozen else "on",
        "batch_norm_statistics": ("fixed" if frozen else "updated") if has_norm else "none",
        "spec_augment": "off" if model.spec_augmentation is None else "on, the student's input: both see the same",
    }
