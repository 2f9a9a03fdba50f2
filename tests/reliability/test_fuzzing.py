"""The larger run of tests/config/test_fuzzed_configs.py: every shipped config, most strategies."""

import pytest

from tests.config.fuzzing import CONFIGS, STRATEGIES, base_configs, fuzz

pytestmark = pytest.mark.reliability
CO_TRAINED = [name for name in STRATEGIES if not name.startswith("static")]  # a frozen teacher needs a checkpoint
EXAMPLES = 80


@pytest.mark.parametrize("part", range(4))
def test_many_changed_configs_end_in_our_error_or_in_a_model(manifest, tokenizer_dir, tmp_path, batch, campaign, part):
    pairs = [(name, strategy) for name in CONFIGS for strategy in CO_TRAINED]
    bases = base_configs(manifest, tokenizer_dir, tmp_path / "runs", pairs[part::4])
    outcomes = fuzz(bases, batch, EXAMPLES, seed=part)
    failed, valid = [text for text in outcomes if text.startswith("!")], outcomes.count("valid")
    survived, refused = len(outcomes) - len(failed), len(outcomes) - len(failed) - valid
    fault, lost = f"random changes to a config, part {part + 1}", f"{refused} refused by key, {valid} trained a step"
    campaign.record(fault, injected=len(outcomes), survived=survived, lost=f"nothing: {lost}")
    assert not failed, "\n".join(failed)
    assert valid and refused
