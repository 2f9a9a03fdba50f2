"""`student_hears`: noise and masks on the student's copy alone; the teacher and the global generators never differ."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nemo_codert.config.student_hears import student_hears_problems
from nemo_codert.data.manifest import write_manifest
from nemo_codert.modules.student_hears import StudentHears, StudentHearsConfig
from nemo_codert.modules.transducer import Batch
from tests.conftest import SAMPLE_RATE
from tests.models.training_runs import train
from tests.training.resume_runs import differences, random_pair, stopped
from tests.training.resume_runs import train as train_run

MASKS = {"freq_masks": 2, "freq_width": 8, "time_masks": 2, "time_width": 5}


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Two recordings of noise, one shorter than the utterances of the batch, one longer; no text."""
    folder = tmp_path_factory.mktemp("noise")
    lines = []
    for seconds in (0.5, 3.0):
        samples = 0.1 * np.random.default_rng(int(seconds)).standard_normal(int(seconds * SAMPLE_RATE))
        soundfile.write(folder / f"{seconds}.wav", samples, SAMPLE_RATE)
        lines.append({"audio_filepath": f"{seconds}.wav", "duration": seconds})
    return write_manifest(folder / "noise.json", lines)


@pytest.fixture
def pair(make_model, noise):
    """Factory of pairs with dither and SpecAugment for both branches, with or without the block."""

    def make(hears: dict | None, legacy: bool = False, **settings):
        shared = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", **MASKS}
        shared["use_vectorized_spec_augment"] = not legacy
        hears = hears and {**hears, **({"noise": str(noise)} if "noise" in hears else {})}
        settings = {"codert": {"student_hears": hears}, "spec_augment": shared, **settings}
        model = make_model(preprocessor={"dither": 1e-2}, **settings)
        for generator in [model.spec_augmentation.spec_augment._rng]:
            generator.seed(5)
        return model.train()

    return make


NOISE = {"noise": True, "snr": [0, 10]}
BLOCKS = {"noise": NOISE, "masks": {"spec_augment": MASKS}, "both": {**NOISE, "spec_augment": MASKS}}


def features_of(model, batch, step: int = 0, batch_nb: int = 0):
    torch.manual_seed(3), random.seed(3)
    (given, _), (heard, _) = model.branch_features(Batch.of([part.clone() for part in batch]), step, batch_nb)
    states = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1],
        model.spec_augmentation.spec_augment._rng.getstate(),
    )
    return given, heard, states


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_teachers_features_and_all_generators_are_as_without_the_block(name, legacy, pair, batch):
    plain, same, states = features_of(pair(None, legacy), batch)
    given, heard, states_after = features_of(pair(BLOCKS[name], legacy), batch)
    assert plain is same and torch.equal(plain, given) and not torch.equal(given, heard)
    assert torch.equal(states[0], states_after[0]) and np.array_equal(states[2], states_after[2])
    assert states[1] == states_after[1] and states[3] == states_after[3]


@pytest.mark.parametrize("legacy", [False, True])
def test_dither_and_common_masks_are_those_of_the_teacher(legacy, pair, batch, noise):
    given, heard, _ = features_of(pair(NOISE, legacy), batch)
    assert ((given == 0) <= (heard == 0)).all()  # masked for the teacher, masked for the student
    some = {**NOISE, "probability": 0.5}
    given, heard, _ = features_of(pair(some, legacy), batch)
    with_noise = [not torch.equal(*rows) for rows in zip(given, heard, strict=True)]
    assert 0 < sum(with_noise) < len(with_noise)  # the others are the teacher's, bit for bit
    given, heard, _ = features_of(pair({"spec_augment": MASKS}, legacy), batch)
    kept = heard != 0
    assert torch.equal(given[kept], heard[kept]) and (heard == 0).sum() > (given == 0).sum()


def test_noise_has_the_wanted_ratio_and_leaves_padding_alone(noise):
    signal, lengths = 0.1 * torch.randn(64, 2 * SAMPLE_RATE), torch.full((64,), SAMPLE_RATE)
    signal[:, SAMPLE_RATE:] = 0.0
    hears = StudentHears(StudentHearsConfig(noise=str(noise), snr=(3.0, 6.0), probability=1.0), SAMPLE_RATE)
    noisy = hears.with_noise(signal, lengths)
    added = noisy - signal
    assert (added[:, SAMPLE_RATE:] == 0).all()
    seconds = (added[:, :SAMPLE_RATE] != 0).sum(1) / SAMPLE_RATE
    ratios = 10 * torch.log10((signal[:, :SAMPLE_RATE] ** 2).mean(1) * seconds / (added**2).sum(1) * SAMPLE_RATE)
    assert ratios.min() > 2.8 and ratios.max() < 6.2 and ratios.max() - ratios.min() > 1
    assert {round(float(value), 1) for value in seconds} == {0.5, 1.0}


def test_seed_step_and_batch_decide_and_nothing_else(pair, batch):
    first, second = (pair(BLOCKS["both"]) for _ in range(2))
    expected = features_of(first, batch, step=4)[1]
    features_of(second, batch, step=1)  # a resumed run has another past
    assert torch.equal(features_of(second, batch, step=4)[1], expected)
    assert not torch.equal(features_of(second, batch, step=5)[1], expected)
    second.student_hears.seed = 1_000_003  # another rank
    assert not torch.equal(features_of(second, batch, step=4)[1], expected)


def test_training_moves_both_branches_and_validation_is_clean(pair, batch, manifest):
    model = pair(BLOCKS["both"])
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = train(model, [batch] * 2)
    assert all(np.isfinite(losses))
    assert all(
        (before[f"{branch}.pre_encode.out.weight"] != value.pre_encode.out.weight).any()
        for branch, value in (("encoder", model.encoder), ("student_encoder", model.student_encoder))
    )
    model.eval()
    logs = model.validation_pass(batch, 0)
    assert torch.equal(logs["val_loss"], model.validation_pass(batch, 0)["val_loss"])


def test_a_saved_pair_opens_without_the_noise_and_names_it_when_it_trains(make_model, batch, noise, tmp_path):
    gone = write_manifest(tmp_path / "gone.json", [{"audio_filepath": "a.wav", "duration": 1.0}])
    model = make_model(codert={"student_hears": {"noise": str(gone)}})
    model.save_to(str(tmp_path / "pair.nemo"))
    gone.unlink()
    from nemo_codert.models.open_model import open_model

    restored = open_model(tmp_path / "pair.nemo").train()
    assert "student_hears" not in str(restored.student_model().cfg)
    with pytest.raises(ValueError, match=r"student_hears.noise is .*gone.json: no such file. Give a manifest"):
        restored.training_step(batch, 0)


@pytest.mark.parametrize(
    "block, message",
    [
        ({}, "has neither noise nor spec_augment"),
        ({"noise": 3}, "noise is 3, wanted the path of a manifest"),
        ({"noises": "a.json", "noise": "a.json"}, "noises is not a key of this version, known are noise, snr"),
        ({"noise": "a.json", "snr": [5, 0]}, r"snr is \[5, 0\], wanted the lowest and the highest in dB"),
        ({"noise": "a.json", "probability": 0}, "probability is 0, wanted a share"),
        ({"spec_augment": {"freq_mask": 2}}, "spec_augment.freq_mask is 2, wanted a number of one of the keys"),
    ],
)
def test_faults_of_the_block_are_named(block, message, make_config):
    from omegaconf import OmegaConf

    from nemo_codert.config.checked import checked_config

    with pytest.raises(ValueError, match=f"model.codert.student_hears.?{message}"):
        checked_config(make_config(codert={"student_hears": block}))
    assert len(list(student_hears_problems(OmegaConf.create(block)))) == 1


def test_a_resumed_run_ends_as_one_that_was_never_stopped(make_config, manifest, noise, tmp_path):
    cfg = random_pair(make_config, manifest, "classic")
    cfg.codert.student_hears = {"noise": str(noise), "snr": [0, 10], "probability": 0.5, "spec_augment": MASKS}
    given = {"max_steps": 3, "val_check_interval": 6, "limit_val_batches": 1, "accumulate_grad_batches": 2}
    whole = train_run(cfg, tmp_path / "whole", **given)
    assert stopped(cfg, tmp_path / "parts", lambda hook, step: (hook, step) == ("batch_start", 2), every=1, **given)
    resumed = train_run(cfg, tmp_path / "parts", seed=9, **given)
    assert not differences(whole, resumed) and resumed.diary.losses == whole.diary.losses[-2:]
