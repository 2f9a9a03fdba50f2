"""NeMo models. Importing this package lets NeMo restore pairs, and no other classes besides its own."""

from nemo_codert.nemo_compat import register_targets

register_targets()

from nemo_codert.models.codert_bpe_model import EncDecCoDERTBPEModel  # noqa: E402
from nemo_codert.models.stock_config import student_config, teacher_config  # noqa: E402

__all__ = ["EncDecCoDERTBPEModel", "student_config", "teacher_config"]
