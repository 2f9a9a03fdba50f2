"""Fixtures of the tests of deployment: pairs that have learnt three sentences, trained once."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import ADDITIVE, SENTENCES, STOCK, conformer, padded_batch, tone
from tests.models.teacher_files import DURATIONS, TDT

STEPS, WARMUP, RATE, CHECK_EVERY = 600, 20, 5e-3, 50
SHIFTS = 8  # of 2.5 ms: what is learned must not hang on where a frame begins, sherpa-onnx's begin 5 ms later
UTTERANCES = 3
CACHE_AWARE = {"att_context_style": "chunked_limited", "att_context_size": [8, 1], "conv_context_size": "causal"}
CACHE_AWARE |= {"causal_downsampling": True}


@pytest.fixture(scope="session")
def spoken() -> dict[str, torch.Tensor]:
    """Three sentences and the signals that stand for them, [S] float32, 1 s or more (NeMo pads shorter ones).

    In some noise, because the features of the very first and last frame are sherpa-onnx's own.
    """
    generator = np.random.default_rng(0)
    signals = [np.pad(tone(0.8 + 0.2 * i, seed=i), (2400, 4800)) for i in range(UTTERANCES)]
    noisy = [signal + 0.003 * generator.standard_normal(len(signal)) for signal in signals]
    return {SENTENCES[i]: torch.from_numpy(signal.astype(np.float32)) for i, signal in enumerate(noisy)}


@pytest.fixture(scope="session")
def trained_pair(make_config, spoken):
    """A pair whose student says the sentences without an error."""
    student, front_end = conformer(layers=1, channels=32), {"preprocessor": {"highfreq": 7600}}
    return _learned(make_config, spoken, student=student, **front_end)


@pytest.fixture(scope="session")
def streaming_pair(make_config, spoken):
    """The same with a cache-aware student."""
    student = {**conformer(layers=1, channels=32), **CACHE_AWARE}
    return _learned(make_config, spoken, student=student, preprocessor={"normalize": "NA"})


@pytest.fixture(scope="session", params=[ADDITIVE, STOCK], ids=["additive", "stock"])
def tdt_pair(request, make_config, spoken):
    """The same with a TDT teacher and a TDT student."""
    student, front_end = conformer(layers=1, channels=32), {"preprocessor": {"highfreq": 7600}}
    tdt = OmegaConf.merge(TDT, {"student": {"durations": DURATIONS}, "loss": {"tdt_kwargs": {"omega": 0.0}}})
    return _learned(make_config, spoken, joint=request.param, student=student, **front_end, tdt=tdt, checks=4)


def _learned(make_config, spoken, *, joint: str = ADDITIVE, tdt=None, checks: int = 1, **changes):
    from nemo_codert.models import EncDecCoDERTBPEModel

    torch.manual_seed(0)
    changes |= {"teacher": conformer(layers=1, channels=32), "decoding": {"greedy": {"max_symbols": 10}}}
    model = EncDecCoDERTBPEModel(OmegaConf.merge(make_config("shared_kd", joint, **changes), tdt or {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    passed = 0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model.train().training_step(_batch(model, spoken, shift=step % SHIFTS), 0)["loss"].backward()
        model.configure_gradient_clipping(optimizer, 5.0, "norm")
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            passed = passed + 1 if _errors(model.eval(), spoken) == 0 else 0
        if passed == checks:
            break
    assert _errors(model.eval(), spoken) == 0, "not learned"
    return model.eval()


def _errors(model, spoken) -> float:
    return sum(model.validation_pass(_batch(model, spoken, shift), 0)["val_wer"] for shift in range(SHIFTS))


def _batch(model, spoken, shift: int):
    signals = [torch.nn.functional.pad(signal, (40 * shift, 0)) for signal in spoken.values()]
    tokens = [torch.tensor(model.tokenizer.text_to_ids(text)) for text in spoken]
    return padded_batch(signals, tokens)
