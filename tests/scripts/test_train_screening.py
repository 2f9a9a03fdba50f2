"""scripts/train.py hands the loaders' settings and the tokenizer to the screening of its data."""

import json
import logging
from pathlib import Path

import pytest
import soundfile
from omegaconf import open_dict


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_limits_that_leave_out_every_utterance_are_refused(policy, script, run_config, tmp_path):
    cfg = run_config("model.train_ds.max_duration=0.5", f"model.codert.bad_utterances={policy}")
    with pytest.raises(ValueError, match="8 of 8 utterances cannot be used .longer than max_duration of 0.5 s: 8"):
        script.screen_data(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_loaders_own_limits_count(script, run_config, manifest, tmp_path):
    cfg = run_config("model.train_ds.max_duration=1.2", "+model.validation_ds.min_duration=1.45")
    script.screen_data(cfg, tmp_path)
    assert [line["duration"] for line in read(tmp_path / "train_ds_usable.json")] == [0.8, 0.9, 1.0, 1.1, 1.2]
    reasons = {line["reason"] for line in read(tmp_path / "train_ds_dropped.json")}
    assert reasons == {"longer than max_duration of 1.2 s"}
    assert [line["duration"] for line in read(tmp_path / "validation_ds_usable.json")] == [1.5]


def test_stereo_is_dropped_for_the_classic_loader_only(script, run_config, manifest, tmp_path):
    lines = read(manifest)
    audio, rate = soundfile.read(lines[0]["audio_filepath"])
    soundfile.write(tmp_path / "stereo.wav", audio[:, None].repeat(2, axis=1), rate)
    path = write(tmp_path / "mixed.json", [{**lines[0], "audio_filepath": str(tmp_path / "stereo.wav")}, *lines[1:]])
    cfg = run_config(f"model.train_ds.manifest_filepath={path}")
    script.screen_data(cfg, tmp_path)
    assert cfg.model.train_ds.manifest_filepath == str(path)
    cfg.model.train_ds.use_lhotse = False
    script.screen_data(cfg, tmp_path)
    (dropped,) = read(tmp_path / "train_ds_dropped.json")
    assert Path(dropped["audio_filepath"]).name == "stereo.wav" and "several channels" in dropped["reason"]


def test_transcripts_in_another_case_than_the_tokenizers_are_told(
    script, run_config, manifest, tmp_path, caplog, monkeypatch
):
    lines = read(manifest)
    upper = [{**line, "text": line["text"].upper()} for line in lines]
    some = write(tmp_path / "some.json", [*upper[:3], *lines[3:]])
    monkeypatch.setattr(logging.getLogger("nemo_codert"), "propagate", True)
    caplog.set_level(logging.INFO, "nemo_codert")  # the script sets the levels of all handlers it finds
    cfg = run_config(f"model.train_ds.manifest_filepath={some}")
    script.screen_data(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(some)
    assert "3 of 8 transcripts hold characters that the tokenizer lacks" in caplog.text
    assert [line["text"] for line in read(tmp_path / "run" / "train_ds_unspelled.json")] == [
        line["text"] for line in upper[:3]
    ]
    cfg = run_config(f"model.train_ds.manifest_filepath={write(tmp_path / 'all.json', upper)}")
    with pytest.raises(ValueError, match="all.json: 8 of 8 transcripts hold characters .* such as 'TURNHELIGO' in "):
        script.screen_data(cfg, tmp_path / "run")


def test_an_encoder_of_unknown_stride_leaves_the_other_checks(script, run_config, manifest, tmp_path):
    lines = read(manifest)
    path = write(
        tmp_path / "mixed.json", [{**lines[0], "text": " "}, {**lines[1], "text": "open the " * 99}, lines[2]]
    )
    cfg = run_config(f"model.train_ds.manifest_filepath={path}")
    with open_dict(cfg):
        for encoder in (cfg.model.encoder, cfg.model.student.encoder):
            del encoder.subsampling_factor
    script.screen_data(cfg, tmp_path)
    assert [line["reason"] for line in read(tmp_path / "train_ds_dropped.json")] == ["empty transcript"]
