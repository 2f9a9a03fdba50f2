"""What is minimised: the terms of a pair's training loss, one class a file.

`Criteria` holds the terms that `nemo_codert.config.criteria.criteria_specs` reads from the config, by name and in the
order in which they are summed. The table of kinds is `nemo_codert.config.criteria.CRITERIA`.
"""

from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.criteria.terms import Criteria

__all__ = ["Criteria", "Criterion", "PairParts"]
