"""model.test_ds of scripts/train.py: checked before training, left out of the models, transcribed at the end."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import open_dict

from tests.scripts.test_train_prepare import SMALL

KEY = "model.test_ds.manifest_filepath"


@pytest.fixture
def test_sets(tmp_path, manifest):
    """Two test manifests, of eight and of three utterances."""
    lines = manifest.read_text().splitlines()
    paths = [tmp_path / "test_seen.json", tmp_path / "test_unseen.json"]
    for path, count in zip(paths, (8, 3), strict=True):
        path.write_text("\n".join(lines[:count]) + "\n")
    return paths


def refusal(script, cfg) -> str:
    with pytest.raises(ValueError) as caught:
        script.check_run(cfg)
    return str(caught.value)


def test_test_sets_are_a_path_or_a_list_or_nothing(script, run_config, test_sets):
    one, two = map(str, test_sets)
    for value, expected in (
        ("null", []),
        (one, [one]),
        (f"[{one},{two}]", [one, two]),
        (f"'{one}, {two}'", [one, two]),
    ):
        cfg = run_config(f"{KEY}={value}")
        script.check_run(cfg)
        assert script.test_manifests(cfg) == expected
    with open_dict(cfg):
        del cfg.model.test_ds  # a stock config may have none
    script.check_run(cfg)
    assert script.test_manifests(cfg) == []


def test_tarred_test_data_are_left_alone(script, run_config):
    cfg = run_config(f"{KEY}='manifest__OP_0..3_CL_.json'", "+model.test_ds.is_tarred=true")
    script.check_run(cfg)
    assert script.test_manifests(cfg) == []


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "absent.json is not a file"),
        ("", "bad.json is empty"),
        ("{", "bad.json:1: not JSON"),
        ('{"audio_filepath": "gone.wav", "duration": 1.0, "text": "a"}', "gone.wav: audio file missing"),
    ],
)
def test_a_test_set_that_cannot_be_transcribed_is_refused_before_training(
    content, message, script, run_config, test_sets, tmp_path
):
    path = tmp_path / ("absent.json" if content is None else "bad.json")
    if content is not None:
        path.write_text(content)
    text = refusal(script, run_config(f"{KEY}=[{test_sets[0]},{path}]", "strategy=static"))
    assert f"{KEY}: " in text and message in text
    assert "model.codert.teacher_checkpoint is null" in text  # told together with the other faults


def test_two_test_sets_of_one_name_are_refused(script, run_config, test_sets, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "test_seen.json"
    twin.write_text(test_sets[0].read_text())
    text = refusal(script, run_config(f"{KEY}=[{test_sets[0]},{twin}]"))
    assert f"{KEY} names 2 files 'test_seen': predictions are kept by that name. Rename one" in text


def test_something_else_than_paths_is_refused(script, run_config):
    assert f"{KEY} is 3, wanted a path or a list of paths" in refusal(script, run_config(f"{KEY}=3"))


def test_a_trained_model_says_what_it_hears_and_keeps_no_path_of_the_test_sets(
    script, run_config, test_sets, manifest, tmp_path
):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    paths = f"[{test_sets[0]},{test_sets[1]}]"
    common = f"{KEY}={paths}", f"model.validation_ds.manifest_filepath={dev}", *SMALL
    alone = {}  # a student is as large in a pair as alone, shared parts counted with it
    for strategy in ("student", "teacher", "tandem_kd", "shared_kd"):
        cfg = run_config(f"strategy={strategy}", *common)
        model = script.build_model(cfg, script.make_trainer(cfg))
        branches = [strategy] if strategy in ("student", "teacher") else ["student", "teacher"]
        if branches == [strategy]:
            alone[strategy] = sum(parameter.numel() for parameter in model.parameters())
        assert "test_ds" not in model.cfg and list(script.test_manifests(cfg)) == list(map(str, test_sets)), strategy
        ended = SimpleNamespace(
            lightning_module=model.eval(), global_step=5, strategy=SimpleNamespace(root_device=torch.device("cpu"))
        )
        folder = tmp_path / strategy
        for branch in branches:
            script.transcribe_tests(cfg, ended, branch, folder)
            check_predictions(folder / "predictions" / branch, branch, test_sets, alone[branch])
        assert {path.name for path in (folder / "predictions").iterdir()} == {*branches}, strategy


def check_predictions(folder: Path, branch: str, test_sets: list[Path], trained_parameters: int) -> None:
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{kind}.json" for name in ("test_seen", "test_unseen") for kind in ("", "_summary")
    }
    for path in test_sets:
        lines = [json.loads(line) for line in (folder / path.name).read_text().splitlines()]
        wanted = [json.loads(line) for line in path.read_text().splitlines()]
        assert [{**line, "pred_text": None} for line in lines] == [{**line, "pred_text": None} for line in wanted]
        assert all(isinstance(line["pred_text"], str) for line in lines)
        summary = json.loads((folder / f"{path.stem}_summary.json").read_text())
        assert (summary["branch"], summary["updates"], summary["batch_size"]) == (branch, 5, 16), folder
        assert [figures["utterances"] for figures in summary["sets"]] == [len(wanted)]
        assert summary["trained_parameters"] == trained_parameters, folder
