"""Fixtures of the analyses: models that are built once a file, and processes that start in no time."""

import multiprocessing

import pytest
import torch


@pytest.fixture
def forking(monkeypatch) -> None:
    """The measurements' own processes are forked: where what they hand back is the point, not what they hold."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr("nemo_codert.analysis.cost_measures.get_context", lambda _: context)


@pytest.fixture(scope="module")
def _kept_models() -> dict:
    return {}


@pytest.fixture
def kept_model(make_model, _kept_models):
    """`make_model`, but a model is built once a file: given with the weights and modes that it was built with."""

    def make(*args, **kwargs):
        key = repr((args, kwargs))
        if key not in _kept_models:
            model = make_model(*args, **kwargs)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            modes = [module.training for module in model.modules()]
            _kept_models[key] = model, state, modes, torch.get_rng_state()
        model, state, modes, random_state = _kept_models[key]
        model.load_state_dict(state)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        model.zero_grad()
        torch.set_rng_state(random_state)
        return model

    return make
