"""What leaves a run, as files: stock `.nemo`, and NeMo's ONNX. Nothing half-written is left under a final name."""

import os
import tempfile
from pathlib import Path

from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.stock_models import stock_model
from nemo_codert.models.transducer import Transducer


def stock_of(model: EncDecRNNTBPEModel, *, branch: str = "student", joint: str = "auto") -> EncDecRNNTBPEModel:
    """A stock model of a pair's branch, or of a model trained alone whose joint may be the additive one.

    Raises:
        ValueError: unknown branch.
    """
    if branch not in ("student", "teacher"):
        raise ValueError(f"branch is {branch!r}, wanted student or teacher")
    if isinstance(model, EncDecCoDERTBPEModel):
        return model.student_model(joint) if branch == "student" else model.teacher_model(joint)
    return stock_model(model, Transducer(model.encoder, model.decoder, model.joint), model.cfg, joint)


def save_model(model: EncDecRNNTBPEModel, path: str | Path) -> Path:
    """`save_to` that leaves either the whole file under `path` or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing_") as folder:
        partial = Path(folder) / path.name
        model.save_to(str(partial))
        os.replace(partial, path)
    return path
