"""Runs on audio with and without text: what is screened and counted, where it is refused, and both loaders."""

import json
from pathlib import Path

import pytest

from nemo_codert.data.manifest import write_manifest
from nemo_codert.training.run import train
from nemo_codert.training.run_checks import check_run
from tests.training.run_configs import SMALL, listed, screened


@pytest.fixture
def manifests(manifest, tmp_path) -> tuple[Path, Path]:
    """Four utterances with text; the other four without, and one whose audio is gone."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    bare = [{key: value for key, value in line.items() if key != "text"} for line in lines[4:]]
    bare.append({**bare[0], "audio_filepath": "gone.wav"})
    return write_manifest(tmp_path / "some.json", lines[:4]), write_manifest(tmp_path / "bare.json", bare)


def source(manifests: tuple[Path, Path], kind: str) -> list[str]:
    some, bare = manifests
    if kind == "list":
        return [f"model.train_ds.manifest_filepath=[{some},{bare}]"]
    inputs = f"[{{type: nemo, manifest_filepath: {some}, weight: 0.5}}, {{type: group, weight: 0.5, input_cfg: "
    inputs += f"[{{type: nemo, manifest_filepath: {bare}}}]}}]"
    return [f"+model.train_ds.input_cfg={inputs}", "model.train_ds.manifest_filepath=null"]


def report_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Utterances used, those of them without text, and all, for each manifest."""
    manifests = json.loads((folder / "data_report.json").read_text())["manifests"]
    counts = ("usable", "unlabelled", "utterances")
    return {Path(each["manifest"]).stem: tuple(each[key] for key in counts) for each in manifests}


@pytest.mark.parametrize("kind", ["list", "input_cfg"])
def test_both_kinds_are_screened_and_counted(kind, manifests, run_config, tmp_path):
    cfg = run_config(*source(manifests, kind), "strategy=shared_kd")
    check_run(cfg)
    screened(cfg, tmp_path / "run")
    found = report_of(tmp_path / "run")
    assert (found["some"], found["bare"]) == ((4, 0, 4), (4, 4, 5))
    kept, block = str(tmp_path / "run" / "train_ds_1_usable.json"), cfg.model.train_ds
    where = block.manifest_filepath[1] if kind == "list" else block.input_cfg[1].input_cfg[0].manifest_filepath
    assert where == kept and all("text" not in json.loads(line) for line in Path(kept).read_text().splitlines())


@pytest.mark.parametrize("strategy", ["student", "tandem"])
def test_no_text_is_a_fault_where_no_term_could_train_on_it(strategy, manifests, run_config, tmp_path):
    cfg = run_config(*source(manifests, "list"), f"strategy={strategy}")
    (problem,) = listed(cfg)
    assert problem.startswith("model.train_ds.manifest_filepath: ") and "bare.json:1: text is missing" in problem
    lines = [json.loads(line) for path in manifests for line in path.read_text().splitlines()]
    cfg = run_config(
        f"model.train_ds.manifest_filepath={write_manifest(tmp_path / 'both.json', lines)}", f"strategy={strategy}"
    )
    check_run(cfg)
    screened(cfg, tmp_path / "run")
    assert report_of(tmp_path / "run")["both"] == (4, 0, 9)


@pytest.mark.parametrize("section", ["model.validation_ds", "+model.test_ds"])
def test_no_text_is_a_fault_in_validation_and_in_tests(section, manifests, run_config):
    (problem,) = listed(run_config(f"{section}.manifest_filepath={manifests[1]}"))
    assert problem.startswith(f"{section.strip('+')}.manifest_filepath: ") and "text is missing" in problem


@pytest.mark.parametrize("kind, lhotse", [("list", False), ("list", True), ("input_cfg", True)])
def test_a_run_trains_on_both_and_saves(kind, lhotse, manifests, manifest, run_config, tmp_path):
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())
    steps = ["trainer.max_steps=3", "trainer.val_check_interval=3", "model.train_ds.batch_size=3"]
    loader = [f"model.train_ds.use_lhotse={str(lhotse).lower()}", f"model.validation_ds.manifest_filepath={dev}"]
    run = train(run_config(*source(manifests, kind), "strategy=shared_kd", *SMALL, *steps, *loader))
    assert run.trainer.global_step == 3 and (run.folder / "student.nemo").is_file()
    assert report_of(run.folder)["bare"] == (4, 4, 5)
