"""Network modules. Importing this package lets NeMo build them from configs and `.nemo` files."""

from nemo_codert.nemo_compat import let_lstms_run_under_bfloat16, register_targets

register_targets()
let_lstms_run_under_bfloat16()

from nemo_codert.modules.additive_joint import AdditiveRNNTJoint  # noqa: E402
from nemo_codert.modules.encoder_logits import encoder_logits, prediction_logits  # noqa: E402
from nemo_codert.modules.stock_joint import to_stock_joint  # noqa: E402

__all__ = ["AdditiveRNNTJoint", "encoder_logits", "prediction_logits", "to_stock_joint"]
