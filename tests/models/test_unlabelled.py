"""Utterances without text: which terms they train, what the others are worth, and both loaders that give them."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.data.manifest import write_manifest
from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch
from tests.models.training_runs import branch_losses, moved_groups, train

LABELLED = [0, 2]
TEXT_TERMS = ("train_rnnt_loss_student", "train_rnnt_loss_teacher")
KD = "train_distillation_loss"


def half_labelled(batch):
    """The batch in which utterances 1 and 3 have no text."""
    signal, signal_len, transcript, transcript_len = (part.clone() for part in batch)
    for row in (1, 3):
        transcript[row], transcript_len[row] = 0, 0
    return signal, signal_len, transcript[:, : int(transcript_len.max())], transcript_len


def test_text_terms_are_means_over_the_labelled_and_the_others_over_all(shared_pair, batch):
    model = shared_pair("tandem_kd")
    mixed = branch_losses(model, half_labelled(batch))
    whole = branch_losses(model, batch)
    alone = branch_losses(model, [part[LABELLED] for part in batch])
    for name in TEXT_TERMS:
        torch.testing.assert_close(mixed[name], alone[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed[KD], whole[KD], rtol=1e-6, atol=1e-6)
    expected = sum(mixed[name] for name in TEXT_TERMS) + 0.1 * mixed[KD]
    torch.testing.assert_close(mixed["train_loss"], expected)


def test_a_batch_without_any_text_trains_the_students_encoder_alone(shared_pair, batch):
    model = shared_pair("tandem_kd")
    signal, signal_len, *_ = batch
    bare = signal, signal_len, torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    losses = branch_losses(model, bare)
    assert set(losses) == {KD, "train_loss"}
    torch.testing.assert_close(losses["train_loss"], 0.1 * branch_losses(model, batch)[KD])
    losses["train_loss"].backward()
    assert moved_groups(model) == {"student_encoder", "student_joint.enc"}


@pytest.fixture(scope="module")
def manifests(manifest, tmp_path_factory) -> tuple[Path, Path]:
    """Four utterances with text, the other four without."""
    folder = tmp_path_factory.mktemp("half")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    bare = [{key: value for key, value in line.items() if key != "text"} for line in lines[4:]]
    return write_manifest(folder / "labelled.json", lines[:4]), write_manifest(folder / "unlabelled.json", bare)


def sources(manifests: tuple[Path, Path], kind: str) -> dict:
    paths = [str(path) for path in manifests]
    if kind == "weights":
        inputs = [{"type": "nemo", "manifest_filepath": path, "weight": 0.5} for path in reversed(paths)]
        return {"input_cfg": inputs, "use_lhotse": True, "seed": 0, "shard_seed": 0}
    return {"manifest_filepath": list(reversed(paths)), "use_lhotse": kind == "lhotse"}


@pytest.mark.parametrize("pretokenize", [True, False])
@pytest.mark.parametrize("kind", ["classic", "lhotse", "weights"])
def test_both_loaders_mix_both_kinds_of_utterances(kind, pretokenize, make_config, manifests):
    block = {"sample_rate": 16000, "batch_size": 4, "shuffle": False, "num_workers": 0, "pin_memory": False}
    block |= sources(manifests, kind) | ({} if kind == "classic" else {"pretokenize": pretokenize})
    cfg = make_config("shared_kd", train_ds=block)
    model = EncDecCoDERTBPEModel(OmegaConf.create(OmegaConf.to_container(cfg)))
    batches = [loaded for loaded, _ in zip(model.train_dataloader(), range(2), strict=False)]
    tokens = [count for loaded in batches for count in Batch.of(loaded).transcript_len.tolist()]
    assert 0 < tokens.count(0) < 8 == len(tokens)
    assert all(Batch.of(loaded).transcript.dtype == torch.int64 for loaded in batches)
    losses = train(model, batches * 2)
    assert all(loss > 0 for loss in losses) and losses[2] < losses[0]
