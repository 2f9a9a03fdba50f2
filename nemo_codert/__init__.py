"""CoDERT: a teacher and a student transducer trained as one NeMo model, the student distilled in place.

Swaminathan et al., "CoDERT: Distilling Encoder Representations with Co-learning for Transducer-based Speech
Recognition", Interspeech 2021, arXiv:2106.07734.

Letters used for tensor shapes in every file:
    B batch, S audio samples, F mel bins, T_in feature frames, T encoder frames (T' the student's where they differ),
    D channels, U target tokens, V vocabulary without blank (the blank id is V).

Importing this package imports neither torch nor NeMo. `nemo_codert.losses` needs torch only.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "EncDecCoDERTBPEModel": "nemo_codert.models",
    "student_config": "nemo_codert.models",
    "teacher_config": "nemo_codert.models",
    "AdditiveRNNTJoint": "nemo_codert.modules",
    "EncoderDistillationLoss": "nemo_codert.losses",
    "additive_rnnt_loss": "nemo_codert.losses",
}

__all__ = ["__version__", *_PUBLIC_NAMES]


def __getattr__(name: str) -> object:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module 'nemo_codert' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
