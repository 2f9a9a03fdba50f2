"""nemo_codert/training/usable_data.py: the loaders' settings and the tokenizer decide which utterances are used."""

import json
import logging
from pathlib import Path

import pytest
import soundfile
from omegaconf import OmegaConf, open_dict

from nemo_codert.training.run_checks import check_run, manifest_paths
from tests.training.run_configs import screened


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_limits_that_leave_out_every_utterance_are_refused(policy, run_config, tmp_path):
    cfg = run_config("model.train_ds.max_duration=0.5", f"model.codert.bad_utterances={policy}")
    with pytest.raises(ValueError, match="8 of 8 utterances cannot be used .longer than max_duration of 0.5 s: 8"):
        screened(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_loaders_own_limits_count(run_config, manifest, tmp_path):
    cfg = run_config("model.train_ds.max_duration=1.2", "+model.validation_ds.min_duration=1.45")
    screened(cfg, tmp_path)
    assert [line["duration"] for line in read(tmp_path / "train_ds_usable.json")] == [0.8, 0.9, 1.0, 1.1, 1.2]
    reasons = {line["reason"] for line in read(tmp_path / "train_ds_dropped.json")}
    assert reasons == {"longer than max_duration of 1.2 s"}
    assert [line["duration"] for line in read(tmp_path / "validation_ds_usable.json")] == [1.5]


def test_stereo_is_dropped_for_the_classic_loader_only(run_config, manifest, tmp_path):
    lines = read(manifest)
    audio, rate = soundfile.read(lines[0]["audio_filepath"])
    soundfile.write(tmp_path / "stereo.wav", audio[:, None].repeat(2, axis=1), rate)
    path = write(tmp_path / "mixed.json", [{**lines[0], "audio_filepath": str(tmp_path / "stereo.wav")}, *lines[1:]])
    cfg = run_config(f"model.train_ds.manifest_filepath={path}")
    screened(cfg, tmp_path)
    assert cfg.model.train_ds.manifest_filepath == str(path)
    cfg.model.train_ds.use_lhotse = False
    screened(cfg, tmp_path)
    (dropped,) = read(tmp_path / "train_ds_dropped.json")
    assert Path(dropped["audio_filepath"]).name == "stereo.wav" and "several channels" in dropped["reason"]


def test_transcripts_in_another_case_than_the_tokenizers_are_told(run_config, manifest, tmp_path, caplog, monkeypatch):
    lines = read(manifest)
    upper = [{**line, "text": line["text"].upper()} for line in lines]
    some = write(tmp_path / "some.json", [*upper[:3], *lines[3:]])
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    caplog.set_level(logging.INFO, "nemo_codert")  # NeMo sets the levels of all handlers it finds
    cfg = run_config(f"model.train_ds.manifest_filepath={some}")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(some)
    assert "3 of 8 transcripts hold characters that the tokenizer lacks" in caplog.text
    assert [line["text"] for line in read(tmp_path / "run" / "train_ds_unspelled.json")] == [
        line["text"] for line in upper[:3]
    ]
    cfg = run_config(f"model.train_ds.manifest_filepath={write(tmp_path / 'all.json', upper)}")
    with pytest.raises(ValueError, match="all.json: 8 of 8 transcripts hold characters .* such as 'TURNHELIGO' in "):
        screened(cfg, tmp_path / "run")


def test_an_encoder_of_unknown_stride_leaves_the_other_checks(run_config, manifest, tmp_path):
    lines = read(manifest)
    path = write(
        tmp_path / "mixed.json", [{**lines[0], "text": " "}, {**lines[1], "text": "open the " * 99}, lines[2]]
    )
    cfg = run_config(f"model.train_ds.manifest_filepath={path}")
    with open_dict(cfg):
        for encoder in (cfg.model.encoder, cfg.model.student.encoder):
            del encoder.subsampling_factor
    screened(cfg, tmp_path)
    assert [line["reason"] for line in read(tmp_path / "train_ds_dropped.json")] == ["empty transcript"]


def test_manifests_are_separated_by_commas_with_or_without_spaces(run_config, manifest, tmp_path):
    odd = tmp_path / "a, b.json"
    odd.write_text(manifest.read_text())
    assert manifest_paths("a.json, b.json,c.json") == ["a.json", "b.json", "c.json"]
    assert manifest_paths(str(odd)) == [str(odd)]
    for value in (f"{manifest}, {manifest}", odd):
        check_run(run_config(f"model.train_ds.manifest_filepath='{value}'"))
    cfg = run_config(f"model.train_ds.manifest_filepath='{manifest}, {manifest}'")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == [str(manifest)] * 2


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


def test_utterances_that_cannot_be_used_are_dropped_and_listed_with_reasons(
    run_config, mixed_manifest, manifest, tmp_path
):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}")
    screened(cfg, tmp_path / "run")
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


def test_a_config_that_leaves_our_defaults_out_drops_what_cannot_be_used(run_config, mixed_manifest, tmp_path):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}")
    with open_dict(cfg):
        cfg.model.codert = {}
    check_run(cfg)
    screened(cfg, tmp_path / "run")
    assert len(read(tmp_path / "run" / "train_ds_dropped.json")) == 3


def test_a_coarser_student_decides_how_many_tokens_fit(run_config, manifest, tmp_path):
    screened(run_config(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["data_report.json"]
    cfg = run_config("model.student.encoder.subsampling_factor=8")  # 10 frames and more for 12 tokens and more
    screened(cfg, tmp_path)
    assert {line["reason"] for line in read(tmp_path / "train_ds_dropped.json")} == {"more tokens than encoder frames"}


def test_bad_utterances_are_refused_where_the_config_says_so(run_config, mixed_manifest, tmp_path):
    cfg = run_config(f"model.train_ds.manifest_filepath={mixed_manifest}", "model.codert.bad_utterances=refuse")
    with pytest.raises(ValueError) as caught:
        screened(cfg, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{mixed_manifest}: 3 of 5 utterances cannot be used")
    assert "absent.wav: audio file missing" in message and "set bad_utterances to 'drop'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["drop", "refuse"])
@pytest.mark.parametrize("text, words", [("", "is empty"), ("\n\n", "is empty"), ("{", "not JSON")])
def test_an_empty_or_broken_manifest_is_refused_by_name(text, words, policy, run_config, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    cfg = run_config(
        f"model.train_ds.manifest_filepath={tmp_path / 'bad.json'}", f"model.codert.bad_utterances={policy}"
    )
    with pytest.raises(ValueError, match=f"bad.json.*{words}"):
        screened(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_manifests_are_screened_each(run_config, mixed_manifest, manifest, tmp_path):
    cfg = run_config(f"model.validation_ds.manifest_filepath=[{manifest},{mixed_manifest}]")
    screened(cfg, tmp_path / "run")
    assert list(cfg.model.validation_ds.manifest_filepath) == [
        str(manifest),
        str(tmp_path / "run" / "validation_ds_1_usable.json"),
    ]


def test_data_that_is_no_plain_manifest_is_left_alone_with_a_warning(run_config, tmp_path, caplog, monkeypatch):
    cfg = run_config()
    with open_dict(cfg):
        cfg.model.train_ds.is_tarred = True
    before = OmegaConf.to_container(cfg.model)
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    caplog.set_level(logging.INFO, "nemo_codert")  # NeMo sets the levels of all handlers it finds
    screened(cfg, tmp_path / "run")
    assert "model.train_ds is not a plain manifest: its utterances are not checked" in caplog.text
    assert OmegaConf.to_container(cfg.model) == before
