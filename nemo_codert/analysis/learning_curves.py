"""The curves of a run, read from the TensorBoard events in its folder."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = (
    (
        "RNN-T loss, nats per utterance",
        {
            "train_rnnt_loss_student": "student, training",
            "train_rnnt_loss_teacher": "teacher, training",
            "val_loss": "student, dev",
        },
    ),
    ("WER on dev, %", {"val_wer": "student", "val_wer_teacher": "teacher"}),
    ("Distillation, nats per utterance", {"train_distillation_loss": "KL(teacher || student)"}),
)


def read_curves(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a run: name -> (optimizer step, value) in order.

    Raises:
        ValueError: no event file in the folder.
    """
    files = sorted(Path(folder).glob("events.out.tfevents.*"))
    if not files:
        raise ValueError(f"{folder} has no events.out.tfevents.* file: give the folder of a run")
    curves: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(points) for tag, points in curves.items()}


def plot_curves(curves: dict[str, list[tuple[int, float]]], path: str | Path) -> Path:
    """Draw losses, word error rates and the distillation term side by side as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(15, 4), constrained_layout=True)
    for axis, (title, names) in zip(axes, CURVES, strict=True):
        for name, label in names.items():
            if points := curves.get(name):
                scale = 100.0 if "wer" in name else 1.0
                marker = "o" if name.startswith("val") else None
                axis.plot(
                    [step for step, _ in points], [scale * v for _, v in points], label=label, marker=marker, ms=3
                )
        axis.set(title=title, xlabel="optimizer step", ylim=(0, _top(curves, names)))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return Path(path)


def _top(curves: dict[str, list[tuple[int, float]]], names: dict[str, str]) -> float | None:
    """Upper end of the axis: the first steps of a loss tower above the rest and would flatten it."""
    if any("wer" in name for name in names):
        return 105.0
    later = [value for name in names for step, value in curves.get(name, []) if step >= 50]
    return 1.05 * max(later) if later else None
