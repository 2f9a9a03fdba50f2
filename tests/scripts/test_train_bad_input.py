"""scripts/train.py refuses what cannot be trained before it writes anything, and drops what cannot be used."""

import json
import logging
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from tests.conftest import ADDITIVE, REPOSITORY, STOCK


def refusal(script: ModuleType, cfg: DictConfig) -> str:
    with pytest.raises(ValueError) as caught:
        script.check_run(cfg)
    return str(caught.value)


@pytest.mark.parametrize("strategy", ["student", "teacher", "tandem", "tandem_kd", "shared", "shared_kd"])
def test_a_run_that_can_start_passes(strategy, script, run_config, tmp_path):
    script.check_run(run_config(f"strategy={strategy}"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["model.train_ds.manifest_filepath=absent.json"],
            ["model.train_ds.manifest_filepath: absent.json is not a file", "Check the path"],
        ),
        (
            ["model.train_ds.manifest_filepath=null"],
            ["train_ds.manifest_filepath is missing", "prepare_data.py"],
        ),
        (
            ["model.validation_ds.manifest_filepath=[a.json,b.json]"],
            [f"model.validation_ds.manifest_filepath: {name}.json is not a file" for name in "ab"],
        ),
        (
            ["model.train_ds.manifest_filepath='a.json, b.json'"],
            [f"model.train_ds.manifest_filepath: {name}.json is not a file" for name in "ab"],
        ),
        (
            ["+model.skip_nan_grad=true"],
            ["model.skip_nan_grad is true", "set model.codert.non_finite.action to skip"],
        ),
        (["~model.validation_ds"], ["model.validation_ds is missing: give it a manifest_filepath"]),
        (
            ["model.tokenizer.dir=absent"],
            ["model.tokenizer.dir is 'absent'", "no tokenizer.model in there", "prepare_data.py"],
        ),
        (
            ["strategy=student", "model.codert.distillation.weight=0.1"],
            [
                "model.codert.distillation.weight is 0.1 but train is student",
                "Set the weight to 0 or choose a strategy",
            ],
        ),
        (
            ["strategy=static"],
            ["model.codert.teacher is frozen", "teacher_checkpoint is null", "give a trained"],
        ),
        (["strategy=static_shared"], ["model.codert.teacher is frozen", "teacher_checkpoint is null"]),
        (
            ["model.codert.teacher_checkpoint=absent.nemo"],
            ["model.codert.teacher_checkpoint is 'absent.nemo': no such file. Give the path of a .nemo file"],
        ),
        (
            ["strategy=teacher", "model.codert.teacher_checkpoint=absent.nemo"],
            ["model.codert.teacher_checkpoint is 'absent.nemo': no such file"],
        ),
        (
            ["strategy=student", "model.student.init_from=absent.nemo"],
            ["model.student.init_from is 'absent.nemo': no such file. Give the path of a .nemo file"],
        ),
        *(
            (
                [f"strategy={train}", "model.codert.rnnt_loss=exact", f"model.joint._target_={STOCK}"],
                [f"model.codert.rnnt_loss is exact but train is {train} with the stock joint", "auto or nemo"],
            )
            for train in ("student", "teacher")
        ),
        (["train=both"], ["train is 'both'", "wanted pair, student or teacher"]),
        (
            ["+init_from_nemo_model=a.nemo"],
            ["init_from_nemo_model is not supported", "codert.teacher_checkpoint"],
        ),
        (
            ["+init_from_pretrained_model=a"],
            ["init_from_pretrained_model is not supported", "init_from"],
        ),
        (["+model.codert.distilation=1"], ["model.codert.distilation is not a key of this version", "distillation"]),
        (["model.codert.distillation.temperature=hot"], ["temperature is 'hot'", "wanted float"]),
        (["model.joint.fuse_loss_wer=true"], ["model.joint.fused_batch_size is None", "set fuse_loss_wer to false"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else value,
)
def test_a_fault_is_named_with_key_value_and_remedy_and_nothing_is_written(
    overrides, words, script, run_config, tmp_path
):
    before = sorted(tmp_path.iterdir())
    message = refusal(script, run_config(*overrides))
    for word in words:
        assert word in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("joint, loss, strategy", [(STOCK, "exact", "shared_kd"), (ADDITIVE, "exact", "student")])
def test_the_exact_loss_is_there_for_pairs_and_for_the_additive_joint(joint, loss, strategy, script, run_config):
    cfg = run_config(f"strategy={strategy}", f"model.codert.rnnt_loss={loss}", f"model.joint._target_={joint}")
    assert script.check_run(cfg) is None


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("source", ["input_cfg", "cuts_path", "shar_path"])
def test_lhotses_other_sources_need_no_manifest(source, absent, script, run_config):
    cfg = run_config("model.train_ds.manifest_filepath=null")
    with open_dict(cfg):
        if absent:
            del cfg.model.train_ds.manifest_filepath
    assert "model.train_ds.manifest_filepath is missing" in refusal(script, cfg)
    with open_dict(cfg):
        cfg.model.train_ds[source] = "given"
    script.check_run(cfg)


def test_manifests_of_tarred_data_may_be_patterns(script, run_config):
    pattern = "model.train_ds.manifest_filepath='manifest__OP_0..3_CL_.json'"
    tarred = run_config(pattern, "+model.train_ds.tarred_audio_filepaths='audio__OP_0..3_CL_.tar'")
    assert script.check_run(tarred) is None


def test_manifests_are_separated_by_commas_with_or_without_spaces(script, run_config, manifest, tmp_path):
    odd = tmp_path / "a, b.json"
    odd.write_text(manifest.read_text())
    assert script.manifest_paths("a.json, b.json,c.json") == ["a.json", "b.json", "c.json"]
    assert script.manifest_paths(str(odd)) == [str(odd)]
    for value in (f"{manifest}, {manifest}", odd):
        script.check_run(run_config(f"model.train_ds.manifest_filepath='{value}'"))
    cfg = run_config(f"model.train_ds.manifest_filepath='{manifest}, {manifest}'")
    script.screen_data(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == [str(manifest)] * 2


def test_faults_of_one_run_are_reported_together(script, run_config):
    message = refusal(
        script,
        run_config("strategy=static", "model.train_ds.manifest_filepath=absent.json", "+init_from_ptl_ckpt=a.ckpt"),
    )
    assert message.startswith("This run cannot start:")
    assert message.count("\n  - ") == 3


def test_paths_that_nobody_gave_are_asked_for(script):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        message = refusal(script, compose("fsdd"))
    for key in ("model.train_ds.manifest_filepath", "model.tokenizer.dir", "exp_manager.exp_dir"):
        assert key in message


def entry(audio: Path, duration: float, text: str) -> dict:
    return {"audio_filepath": str(audio), "duration": duration, "text": text}


@pytest.fixture
def mixed_manifest(tmp_path, manifest) -> Path:
    """Two good utterances, an empty transcript, a missing file, and one with more tokens than encoder frames."""
    good = [json.loads(line) for line in manifest.read_text().splitlines()]
    audio, duration = Path(good[0]["audio_filepath"]), good[0]["duration"]
    bad = [
        entry(audio, duration, "  "),
        entry(tmp_path / "absent.wav", 1.0, "turn the light on"),
        entry(audio, duration, "turn the right light off " * 10),
    ]
    path = tmp_path / "mixed.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in [good[0], *bad, good[1]]))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_utterances_that_cannot_be_used_are_dropped_and_listed_with_reasons(
    script, run_config, mixed_manifest, manifest, tmp_path
):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}")
    script.screen_data(cfg, tmp_path / "run")
    usable, dropped = (read(tmp_path / "run" / f"train_ds_{kind}.json") for kind in ("usable", "dropped"))
    assert cfg.model.train_ds.manifest_filepath == str(tmp_path / "run" / "train_ds_usable.json")
    assert usable == [read(mixed_manifest)[0], read(mixed_manifest)[-1]]
    assert [line["reason"] for line in dropped] == [
        "empty transcript",
        "audio file missing",
        "more tokens than encoder frames",
    ]
    assert [line["text"] for line in dropped] == [line["text"] for line in read(mixed_manifest)[1:4]]
    assert cfg.model.validation_ds.manifest_filepath == str(manifest)  # nothing to drop: the user's own file
    assert not list((tmp_path / "run").glob("validation_ds*"))


def test_a_config_that_leaves_our_defaults_out_drops_what_cannot_be_used(script, run_config, mixed_manifest, tmp_path):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}")
    with open_dict(cfg):
        cfg.model.codert = {}
    script.check_run(cfg)
    script.screen_data(cfg, tmp_path / "run")
    assert len(read(tmp_path / "run" / "train_ds_dropped.json")) == 3


def test_a_coarser_student_decides_how_many_tokens_fit(script, run_config, manifest, tmp_path):
    script.screen_data(run_config(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["data_report.json"]
    cfg = run_config("model.student.encoder.subsampling_factor=8")  # 10 frames and more for 12 tokens and more
    script.screen_data(cfg, tmp_path)
    assert {line["reason"] for line in read(tmp_path / "train_ds_dropped.json")} == {"more tokens than encoder frames"}


def test_bad_utterances_are_refused_where_the_config_says_so(script, run_config, mixed_manifest, tmp_path):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}", "model.codert.bad_utterances=refuse")
    with pytest.raises(ValueError) as caught:
        script.screen_data(cfg, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{mixed_manifest}: 3 of 5 utterances cannot be used")
    assert "absent.wav: audio file missing" in message and "set bad_utterances to 'drop'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["drop", "refuse"])
@pytest.mark.parametrize("text, words", [("", "is empty"), ("\n\n", "is empty"), ("{", "not JSON")])
def test_an_empty_or_broken_manifest_is_refused_by_name(text, words, policy, script, run_config, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    cfg = run_config(
        f"model.train_ds.manifest_filepath={tmp_path / 'bad.json'}", f"model.codert.bad_utterances={policy}"
    )
    with pytest.raises(ValueError, match=f"bad.json.*{words}"):
        script.screen_data(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_manifests_are_screened_each(script, run_config, mixed_manifest, manifest, tmp_path):
    cfg = run_config(f"model.validation_ds.manifest_filepath=[{manifest},{mixed_manifest}]")
    script.screen_data(cfg, tmp_path / "run")
    assert list(cfg.model.validation_ds.manifest_filepath) == [
        str(manifest),
        str(tmp_path / "run" / "validation_ds_1_usable.json"),
    ]


def test_data_that_is_no_plain_manifest_is_left_alone_with_a_warning(
    script, run_config, tmp_path, caplog, monkeypatch
):
    cfg = run_config()
    with open_dict(cfg):
        cfg.model.train_ds.is_tarred = True
    before = OmegaConf.to_container(cfg.model)
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    caplog.set_level(logging.INFO, "nemo_codert")  # the script sets the levels of all handlers it finds
    script.screen_data(cfg, tmp_path / "run")
    assert "model.train_ds is not a plain manifest: its utterances are not checked" in caplog.text
    assert OmegaConf.to_container(cfg.model) == before


@pytest.mark.parametrize(
    "content, words",
    [
        ({"tokenizer.model": b"no model", "vocab.txt": b""}, ["tokenizer.model is not a SentencePiece model"]),
        ({"tokenizer.model": b"", "vocab.txt": b""}, ["tokenizer.model is not a SentencePiece model"]),
        ({"tokenizer.model": b"no model"}, ["no vocab.txt in there"]),
    ],
    ids=["broken", "empty", "no vocabulary"],
)
def test_a_tokenizer_that_nemo_cannot_read_is_refused_by_folder(content, words, script, run_config, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, written in content.items():
        (folder / name).write_bytes(written)
    message = refusal(script, run_config(f"model.tokenizer.dir={folder}"))
    for word in (f"model.tokenizer.dir is {str(folder)!r}", "scripts/prepare_data.py makes one", *words):
        assert word in message
