"""The larger run of tests/config/test_fuzzed_configs.py: every shipped config, most strategies."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.fuzzing import CONFIGS, STRATEGIES, base_configs, broken_configs, outcome
from tests.conftest import load_script

pytestmark = pytest.mark.reliability
SETTINGS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": False}
CO_TRAINED = [name for name in STRATEGIES if not name.startswith("static")]  # a frozen teacher needs a checkpoint
EXAMPLES = 120


@pytest.mark.parametrize("part", range(4))
def test_many_changed_configs_end_in_our_error_or_in_a_model(manifest, tokenizer_dir, tmp_path, batch, campaign, part):
    pairs = [(name, strategy) for name in CONFIGS for strategy in CO_TRAINED]
    bases, script = base_configs(manifest, tokenizer_dir, tmp_path / "runs", pairs[part::4]), load_script("train")
    outcomes: list[str] = []

    @settings(max_examples=EXAMPLES, **SETTINGS)
    @given(broken_configs(bases), st.just(part))
    def change(cfg: dict, _: int) -> None:
        outcomes.append(outcome(script, cfg, batch))

    change()
    valid = outcomes.count("valid")
    assert valid and len(outcomes) - valid
    lost = f"nothing: {len(outcomes) - valid} refused by key, {valid} trained a step"
    campaign.record("a config with random changes", injected=len(outcomes), survived=len(outcomes), lost=lost)
