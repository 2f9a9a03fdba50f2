"""Plain training loops and parameter groups that several test files of the pair share."""

import torch

GROUPS = [
    f"{prefix}{part}"
    for prefix in ("", "student_")
    for part in ("encoder", "decoder", "joint.enc", "joint.pred", "joint.joint_net")
]


def group_of(name: str) -> str:
    """Group of a parameter: `student_joint.pred.weight` -> `student_joint.pred`."""
    return next(group for group in GROUPS if name.startswith(f"{group}."))


def moved_groups(model: torch.nn.Module) -> set[str]:
    """Groups in which some gradient is not zero."""
    return {group_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def touched_groups(model: torch.nn.Module) -> set[str]:
    """Groups in which some parameter has a gradient at all."""
    return {group_of(n) for n, p in model.named_parameters() if p.grad is not None}


def branch_losses(model, batch, step: int = 0) -> dict[str, torch.Tensor]:
    """All parts of a pair's training loss, before any of them is backpropagated."""
    from nemo_codert.modules.transducer import Batch

    batch = Batch.of(batch)
    features = model.extract_features(batch.signal, batch.signal_len)
    of_student, of_teacher = model.criteria.layers(step)
    student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len, layers=of_student)
    teacher = model.teacher.output(*features, batch, student, of_teacher)
    return model.codert_losses(student, teacher, batch, step)


def shortest(batch, count: int = 2) -> tuple[torch.Tensor, ...]:
    """The first utterances of the batch: on a CPU NeMo's loss is a loop of Python's over frames and tokens."""
    signal, signal_len, transcript, transcript_len = (part[:count] for part in batch)
    return signal[:, : signal_len.max()], signal_len, transcript[:, : transcript_len.max()], transcript_len


def train(model, batches, loss_of=None, clip: float | None = None, lr: float = 1e-3) -> list[float]:
    """One AdamW step per batch, clipped as Lightning would clip the model; returns the losses."""
    loss_of = loss_of or (lambda batch: model.training_step(batch, 0)["loss"])
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        if clip:
            model.configure_gradient_clipping(optimizer, clip, "norm")
        optimizer.step()
        losses.append(loss.item())
    return losses


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Same names, and bit-equal values."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
