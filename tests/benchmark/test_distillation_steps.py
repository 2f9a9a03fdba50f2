"""Steps with each kind of distillation in the benchmark, at tiny sizes."""

import pytest

from nemo_codert.benchmark.distillation_steps import ALONE, AVERAGE, HEADS, TERMS, TermCase, term_config
from nemo_codert.benchmark.training_step import StepSettings
from nemo_codert.config.checked import checked_config

TINY = StepSettings(2, 0.5, 3, 64, teacher=(2, 32), student=(2, 16), pred_hidden=20, joint_hidden=24)
OTHERS = {ALONE: [], HEADS: ["last", "middle", "middle_heads"], AVERAGE: ["views"]}


@pytest.mark.parametrize("name", [*OTHERS, *TERMS])
def test_a_row_has_the_student_with_its_terms_and_no_other(name):
    terms = [
        spec.name for spec in checked_config(term_config(name, TINY)).criteria if not spec.name.startswith("rnnt_")
    ]
    assert [each for each in terms if each != "ctc_student"] == OTHERS.get(name, ["term"])


def test_the_terms_come_on_top_of_one_and_the_same_loss():
    losses = {name: TermCase(name, TINY).prepare()().item() for name in (ALONE, "encoder", "hidden, mse")}
    assert min(losses["encoder"], losses["hidden, mse"]) > losses[ALONE] > 0
