"""Random changes to the shipped configs end in our error or in a model that can be trained."""

import copy

import pytest
from omegaconf import OmegaConf

from tests.config.fuzzing import base_configs, built, fuzz, outcome, time_limit
from tests.conftest import STOCK


@pytest.fixture(scope="module")
def make_bases(manifest, tokenizer_dir, tmp_path_factory):
    """Configs of pairs of names, each composed once; they may be changed."""
    made, runs = {}, tmp_path_factory.mktemp("bases") / "runs"

    def make(pairs: list[tuple[str, str]]) -> list[dict]:
        for pair in pairs:
            if pair not in made:
                (made[pair],) = base_configs(manifest, tokenizer_dir, runs, [pair])
        return [copy.deepcopy(made[pair]) for pair in pairs]

    return make


def test_the_configs_that_are_changed_are_valid_as_they_are(make_bases, batch):
    for cfg in make_bases([("fsdd", "shared_kd"), ("librispeech_lstm", "student")]):
        assert outcome(cfg, batch) == "valid"


def test_changed_configs_end_in_our_error_or_in_a_model(make_bases, batch):
    outcomes = fuzz(make_bases([("fsdd", "shared_kd"), ("librispeech_lstm", "student")]), batch, 15, seed=0)
    assert len(outcomes) == 15 and not [text for text in outcomes if text.startswith("!")]
    assert any(text.startswith("This run cannot start") for text in outcomes)


KEYS = {
    "model.decoding.greedy.max_symbols": (0, "max_symbols is 0, wanted a whole number from 1 to 1000"),
    "model.encoder._target_": ("os.system", "model.encoder._target_ is 'os.system', wanted a class of NeMo's"),
    "model.student.encoder._target_": ("builtins.eval", "model.student.encoder._target_ is 'builtins.eval', wanted"),
    "model.decoder.prednet.dropout": ("much", "model.decoder: "),
    "model.joint": (
        {"_target_": STOCK, "jointnet": {"joint_hidden": 8, "activation": "no", "dropout": 0}},
        "model.joint:",
    ),
    "model.encoder.n_layers": (10**12, "model.encoder.n_layers is 1000000000000, wanted a number of at most 1000"),
    "model.encoder.d_model": (2**31, "model.encoder.d_model is 2147483648, wanted a number of at most 1048576"),
    "model.encoder.dropout": (float("nan"), "model.encoder.dropout is nan, wanted a number of at most"),
    "model.decoding.beam": ({"beam_size": 0}, "model.decoding.beam.beam_size is 0, wanted a whole number from 1"),
}


@pytest.mark.parametrize("key", KEYS)
def test_faults_that_ended_in_a_traceback_or_never_are_named_by_key(make_bases, key):
    (cfg,) = make_bases([("fsdd", "shared_kd")])
    *parents, last = key.split(".")
    block, (value, message) = cfg, KEYS[key]
    for parent in parents:
        block = block[parent]
    block[last] = value
    with time_limit(), pytest.raises(ValueError) as error:
        built(OmegaConf.create(cfg))
    assert message in str(error.value)


def test_no_schedule_is_a_schedule_of_null(make_bases):
    for strategy in ("shared_kd", "student"):
        (cfg,) = make_bases([("fsdd", strategy)])
        cfg["model"]["optim"]["sched"] = None
        assert "sched" not in built(OmegaConf.create(cfg)).cfg.optim
