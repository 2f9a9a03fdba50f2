"""Measures of a teacher before training: its word errors, and the information in its encoder logits.

A stock teacher was never trained with its prediction projection masked, so its "encoder logits" may carry little
information: the entropy and the agreement measure it. Word errors are those of the teacher's own decoding; a TDT
model decodes by durations, but its logits are the joint's outputs for tokens, read as those of an RNN-T.
B batch, T encoder frames, U target tokens, V vocabulary without blank.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding
from omegaconf import OmegaConf
from torch import nn

from nemo_codert.analysis.alignment import align, passed_logits
from nemo_codert.analysis.measures import entropy
from nemo_codert.losses import valid_frames
from nemo_codert.models import EncDecCoDERTBPEModel


@torch.no_grad()
def teacher_report(model: EncDecCoDERTBPEModel, batches: Iterable[Any], max_batches: int = 50) -> dict[str, Any]:
    """Measure a pair's teacher on development data.

    Args:
        batches: a validation dataloader, or several of which the first counts.
        max_batches: number of batches for entropies and agreement; word errors are measured on all.

    Returns:
        Tensors and parameters loaded, words and `wer`; `encoder_logits`: their source (`joint`, `TDT joint`,
        `CTC head`); `ctc_wer`: WER of the head's greedy text; per frame, in nats, `encoder_entropy`, `joint_entropy`;
        `encoder_joint_top1_agreement`: share of frames in which the encoder logits and the joint have the same
        likeliest class, at the joint node that the transcript's alignment most likely passes; the mode of the
        teacher's modules. Of a teacher whose encoder alone was loaded neither word errors nor logits are measured, and
        `encoder_logits` is `none`.
    """
    if not model.teacher_transcribes:
        return {**model.loaded.get("teacher", {}), "encoder_logits": "none", **_modes(model)}
    was_training = model.training
    model.eval()
    totals = Counter()
    loader = batches[0] if isinstance(batches, list) else batches
    metrics = {"": model.wer}
    if model.teacher_transducer.ctc_head is not None:
        metrics["ctc_"] = _ctc_wer(model)
    model.wer.reset()
    try:
        for index, batch in enumerate(loader):
            batch = [part.to(model.device) for part in batch[:4]]
            _measure(model, batch, metrics, totals, frames_too=index < max_batches)
    finally:
        model.wer.reset()
        model.train(was_training)
    frames = max(totals.pop("frames"), 1.0)
    return {
        **model.loaded.get("teacher", {}),
        "wer": totals["errors"] / max(totals["words"], 1.0),
        "words": int(totals["words"]),
        **({"ctc_wer": totals["ctc_errors"] / max(totals["words"], 1.0)} if "ctc_" in metrics else {}),
        "encoder_logits": _source_of_logits(model),
        "encoder_entropy": totals["encoder_entropy"] / frames,
        "joint_entropy": totals["joint_entropy"] / frames,
        "encoder_joint_top1_agreement": totals["agreement"] / frames,
        **_modes(model),
    }


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
        nothing = "  its encoder alone was loaded, for terms at hidden layers: WER and logits cannot be measured"
        return "\n".join([opening, nothing, closing])
    ctc = f", of its CTC head's greedy text {report['ctc_wer']:.2%}" if "ctc_wer" in report else ""
    source = "" if report["encoder_logits"] == "joint" else f" of its {report['encoder_logits']}"
    lines = [
        opening,
        f"  WER on the dev set {report['wer']:.2%}{ctc} over {report['words']} words",
        f"  encoder logits{source}: entropy {report['encoder_entropy']:.3f} nats a frame (its joint "
        f"{report['joint_entropy']:.3f}), top-1 agreement with its joint {report['encoder_joint_top1_agreement']:.1%}",
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


def _modes(model: EncDecCoDERTBPEModel) -> dict[str, str]:
    frozen = model.teacher_is_frozen
    statistics = {"ema": "the student's"}.get(model.cfg.codert.teacher, "fixed" if frozen else "updated")
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.encoder.modules())
    return {
        "mode": "eval, no gradients" if frozen else "training, with gradients",
        "dropout": "off" if frozen else "on",
        "batch_norm_statistics": statistics if has_norm else "none",
        "spec_augment": "off" if model.spec_augmentation is None else "on, the student's input: both see the same",
    }
