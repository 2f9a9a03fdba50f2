"""Is the teacher any good, and do its encoder logits say anything? Measured before a step is trained on them.

A stock teacher was never trained with its prediction projection masked, so its "encoder logits" may carry little
(the entropy and the agreement tell). B batch, T encoder frames, U target tokens, V vocabulary without blank.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nemo_codert.analysis.alignment import align, passed_logits
from nemo_codert.analysis.logit_measures import entropy
from nemo_codert.losses import valid_frames
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.transducer import encode, predict, project, project_prediction
from nemo_codert.modules.encoder_logits import projected_logits


@torch.no_grad()
def teacher_report(model: EncDecCoDERTBPEModel, batches: Iterable[Any], max_batches: int = 50) -> dict[str, Any]:
    """Measure a pair's teacher on development data.

    Args:
        batches: a validation dataloader, or several of which the first counts.
        max_batches: how many of them give entropies and agreement; the word errors are those of all.

    Returns:
        Tensors and parameters loaded, words and `wer`; per frame, in nats, `encoder_entropy` and `joint_entropy`;
        `encoder_joint_top1_agreement`: how often the encoder logits and the joint name the same class, at the joint
        node that the transcript's alignment most likely passes in that frame; the mode of the teacher's modules.
    """
    was_training = model.training
    model.eval()
    totals = dict.fromkeys(("frames", "encoder_entropy", "joint_entropy", "agreement", "errors", "words"), 0.0)
    loader = batches[0] if isinstance(batches, list) else batches
    model.wer.reset()
    try:
        for index, batch in enumerate(loader):
            _measure(model, [part.to(model.device) for part in batch[:4]], totals, frames_too=index < max_batches)
    finally:
        model.wer.reset()
        model.train(was_training)
    frames = max(totals.pop("frames"), 1.0)
    return {
        **model.loaded.get("teacher", {}),
        "wer": totals["errors"] / max(totals["words"], 1.0),
        "words": int(totals["words"]),
        "encoder_entropy": totals["encoder_entropy"] / frames,
        "joint_entropy": totals["joint_entropy"] / frames,
        "encoder_joint_top1_agreement": totals["agreement"] / frames,
        **_modes(model),
    }


def format_teacher_report(report: dict[str, Any]) -> str:
    """The report as lines for a person."""
    lines = [
        f"Teacher {report.get('source', '(not loaded)')}: {report.get('tensors', 0)} tensors, "
        f"{report.get('parameters', 0):,} parameters loaded, none missing, none unexpected",
        f"  WER on the dev set {report['wer']:.2%} over {report['words']} words",
        f"  encoder logits: entropy {report['encoder_entropy']:.3f} nats a frame (its joint "
        f"{report['joint_entropy']:.3f}), top-1 agreement with its joint {report['encoder_joint_top1_agreement']:.1%}",
        f"  in training: {report['mode']}; dropout {report['dropout']}, batch-norm statistics "
        f"{report['batch_norm_statistics']}, SpecAugment {report['spec_augment']}",
    ]
    return "\n".join(lines)


def _measure(
    model: EncDecCoDERTBPEModel, batch: list[torch.Tensor], totals: dict[str, float], frames_too: bool
) -> None:
    signal, signal_len, transcript, transcript_len = batch
    features, features_len = model.extract_features(signal, signal_len)
    teacher = model.teacher_transducer
    encoded = encode(teacher, features, features_len)
    model.wer.update(
        predictions=encoded.encoded,
        predictions_lengths=encoded.encoded_len,
        targets=transcript,
        targets_lengths=transcript_len,
    )
    _, errors, words = model.wer.compute()  # of this batch: NeMo's metric does not add up over updates
    totals["errors"] += float(errors)
    totals["words"] += float(words)
    if not frames_too:
        return
    prediction = project_prediction(teacher.joint, predict(teacher, transcript, transcript_len))
    projected = project(teacher.joint, encoded, prediction)
    alignment = align(teacher.joint, projected, transcript, transcript_len)
    valid = valid_frames(encoded.encoded_len, projected.encoder.shape[1])
    of_encoder = projected_logits(teacher.joint, projected.encoder)[valid]  # [N, V+1], N frames
    of_joint = passed_logits(teacher.joint, projected, alignment)[valid]  # [N, V+1]
    totals["frames"] += len(of_joint)
    totals["encoder_entropy"] += float(entropy(of_encoder).sum())
    totals["joint_entropy"] += float(entropy(of_joint).sum())
    totals["agreement"] += float((of_joint.argmax(-1) == of_encoder.argmax(-1)).sum())


def _modes(model: EncDecCoDERTBPEModel) -> dict[str, str]:
    frozen = model.teacher_is_frozen
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.encoder.modules())
    return {
        "mode": "eval, no gradients" if frozen else "training, with gradients",
        "dropout": "off" if frozen else "on",
        "batch_norm_statistics": "none" if not has_norm else "fixed" if frozen else "updated",
        "spec_augment": "off" if model.spec_augmentation is None else "on, the student's input: both see the same",
    }
