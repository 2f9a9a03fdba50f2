"""Utterance ids in a batch, where NeMo's loaders give them."""

import json

import pytest
from omegaconf import OmegaConf

from nemo_codert.data.utterance_ids import entry_id
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch

LOADER = {"sample_rate": 16000, "batch_size": 3, "shuffle": False, "num_workers": 0, "pin_memory": False}


def first_batch(make_config, manifest, **settings) -> tuple[EncDecCoDERTBPEModel, list]:
    cfg = make_config("shared_kd", train_ds={"manifest_filepath": str(manifest), **LOADER, **settings})
    model = EncDecCoDERTBPEModel(OmegaConf.create(OmegaConf.to_container(cfg)))
    return model, next(iter(model.train_dataloader()))


@pytest.mark.parametrize("use_lhotse", [False, True])
def test_both_loaders_give_ids_that_lead_back_to_the_manifest(make_config, manifest, use_lhotse):
    settings = {"use_lhotse": use_lhotse, "return_sample_id": True}
    model, loaded = first_batch(make_config, manifest, **settings)
    batch, lines = Batch.of(loaded), [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(batch.sample_id) == 3 == len(set(batch.sample_id))
    by_id = {entry_id(line): line for line in lines}
    for name, length in zip(batch.sample_id, batch.signal_len.tolist(), strict=True):
        line = by_id[name]
        assert length == round(line["duration"] * 16000)
    assert batch.row(1).sample_id == batch.sample_id[1:2]
    model.train().training_step(loaded, 0)["loss"].backward()
    model.eval().validation_pass(loaded, 0)


@pytest.mark.parametrize("use_lhotse", [False, True])
def test_without_the_setting_a_batch_has_no_ids(make_config, manifest, use_lhotse):
    _, loaded = first_batch(make_config, manifest, use_lhotse=use_lhotse)
    assert Batch.of(loaded).sample_id is None
