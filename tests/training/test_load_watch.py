"""Audio that breaks after the screening: counted, listed and passed over, or refused; and batches of stereo."""

import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from lhotse.audio.utils import AudioLoadingError
from lightning.pytorch import Trainer

from nemo_codert.data import DataReport
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.training.load_watch import LOST, LoadWatch
from tests.conftest import SAMPLE_RATE, SENTENCES, tone

LHOTSE = {"use_lhotse": True, "sample_rate": SAMPLE_RATE, "batch_size": 4, "shuffle": False, "seed": 0}
LHOTSE.update(shard_seed=0, pretokenize=False)


@pytest.fixture
def corpus(tmp_path):
    """Factory of a manifest of eight utterances of so many channels, and the paths of its audio."""

    def make(channels: int = 1):
        paths = [tmp_path / f"{i}.flac" for i in range(len(SENTENCES))]
        lines = []
        for i, (path, text) in enumerate(zip(paths, SENTENCES, strict=True)):
            soundfile.write(path, np.stack([tone(1.0, seed=i)] * channels, axis=1), SAMPLE_RATE)
            lines.append({"audio_filepath": str(path), "duration": 1.0, "text": text})
        (tmp_path / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / "train.json", paths

    return make


@pytest.fixture
def fit(make_config, tmp_path):
    """Trains a pair on a manifest for four batches of lhotse's loader, which is two epochs."""

    def run(manifest, policy="drop", workers=0):
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
        watch = LoadWatch(policy)
        trainer = Trainer(
            max_steps=4,
            max_epochs=-1,
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[watch],
            use_distributed_sampler=False,
            limit_train_batches=2,
            **quiet,
        )
        DataReport().write(tmp_path)
        cfg = make_config(train_ds={**LHOTSE, "manifest_filepath": str(manifest), "num_workers": workers})
        torch.manual_seed(0)
        trainer.fit(EncDecCoDERTBPEModel(cfg, trainer=trainer))
        return trainer, watch

    return run


def break_off(path) -> None:
    """Keep the header and half of the samples."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def loading(folder) -> dict:
    return json.loads((folder / "data_report.json").read_text())["loading"]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_any_more_is_counted_listed_and_passed_over(corpus, fit, tmp_path, caplog, workers):
    manifest, paths = corpus()
    break_off(paths[1]), break_off(paths[6])
    trainer, watch = fit(manifest, workers=workers)
    assert trainer.global_step == 4
    lost = [json.loads(line)["lost"] for line in (tmp_path / LOST).read_text().splitlines()]
    assert lost[:2] == [[str(paths[1])], [str(paths[6])]]
    count = sum(map(len, lost))
    assert loading(tmp_path) == {"asked": watch.arrived + count, "arrived": watch.arrived, "lost": count}
    assert watch.arrived == 12  # of two batches in two epochs, three each
    assert f"{count} of {12 + count} requested utterances could not be read during training" in caplog.text


def test_refuse_stops_and_names_what_cannot_be_read(corpus, fit, tmp_path):
    manifest, paths = corpus()
    break_off(paths[2])
    with pytest.raises(ValueError) as caught:
        fit(manifest, "refuse")
    assert f"1 of 4 utterances of a batch cannot be read any more: {paths[2]}. " in str(caught.value)
    assert loading(tmp_path)["lost"] == 1


def test_a_batch_of_which_nothing_is_left_stops_with_one_error(corpus, fit):
    manifest, paths = corpus()
    for path in paths:
        break_off(path)
    with pytest.raises(
        ValueError, match="No utterance of a batch of 4 can be read .*0.flac.* Is the folder of the au"
    ):
        fit(manifest)


def test_without_losses_nothing_is_listed_or_said(corpus, fit, tmp_path, caplog):
    manifest, _ = corpus()
    with caplog.at_level(logging.WARNING, "nemo_codert"):
        _, watch = fit(manifest)
    assert loading(tmp_path) == {"asked": 16, "arrived": 16, "lost": 0} and watch.state_dict() == {"arrived": 16}
    assert not (tmp_path / LOST).exists() and "asked for" not in caplog.text


def test_a_file_that_has_gone_stops_the_run_by_name(corpus, fit):
    """lhotse reads every header again before each batch, and does not pass over that."""
    manifest, paths = corpus()
    paths[3].unlink()
    with pytest.raises(AudioLoadingError, match="3.flac"):
        fit(manifest)


def test_a_batch_of_nothing_but_stereo_is_mixed_down(corpus, fit):
    manifest, _ = corpus(channels=2)
    trainer, _ = fit(manifest)
    assert trainer.global_step == 4
