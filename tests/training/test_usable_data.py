"""nemo_codert/training/usable_data.py: the loaders' settings and the tokenizer decide which utterances are used."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from omegaconf import OmegaConf, open_dict

from nemo_codert.config.data_sections import manifest_paths
from nemo_codert.training.run_checks import check_run, text_fields
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


def test_the_text_field_of_a_section_or_of_a_source_is_read(run_config, manifest, tmp_path):
    lines = [{**line, "said": line["text"], "text": " "} for line in read(manifest)]
    path = write(tmp_path / "said.json", lines)
    cfg = run_config(f"model.train_ds.manifest_filepath={path}", "+model.train_ds.text_field=said")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(path)
    with open_dict(cfg):
        cfg.model.train_ds.manifest_filepath = None
        plain = {"type": "nemo", "manifest_filepath": str(manifest), "text_field": "text"}
        inner = {"type": "nemo", "manifest_filepath": str(path)}
        cfg.model.train_ds.input_cfg = [plain, {"type": "group", "input_cfg": [inner]}]
    assert text_fields(cfg.model.train_ds) == ["text", "said"]
    screened(cfg, tmp_path / "other")
    assert cfg.model.train_ds.input_cfg[1].input_cfg[0].manifest_filepath == str(path)


def test_a_channel_of_a_line_is_read_by_nemos_loader_with_the_selector_alone(run_config, manifest, tmp_path):
    sounds = [soundfile.read(line["audio_filepath"], dtype="float32")[0] for line in read(manifest)[:2]]
    both = np.stack([sound[: len(sounds[0])] for sound in sounds], axis=1)
    soundfile.write(tmp_path / "call.wav", both, 16000, subtype="FLOAT")
    shared = {"audio_filepath": "call.wav", "duration": len(both) / 16000}
    lines = [{**shared, "channel": channel, "text": line["text"]} for channel, line in enumerate(read(manifest)[:2])]
    path = write(tmp_path / "call.json", lines)
    given = f"model.train_ds.manifest_filepath={path}"
    with pytest.raises(ValueError, match="2 of 2 utterances cannot be used .other transcripts .* channel_selector"):
        screened(run_config(given), tmp_path / "mixed")
    cfg = run_config(given, "+model.train_ds.channel_selector=channel", "model.train_ds.batch_size=2")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(path)
    block = {**OmegaConf.to_container(cfg.model.train_ds, resolve=True), "force_finite": True, "num_workers": 0}
    loader = get_lhotse_dataloader_from_config(OmegaConf.create(block), 0, 1, dataset=Cuts())
    found = {cut.custom["channel"]: cut.load_audio()[0] for cut in next(iter(loader))}
    assert all(np.array_equal(found[channel], both[:, channel]) for channel in (0, 1))


class Cuts(torch.utils.data.Dataset):
    """The cuts of a batch, as they are."""

    def __getitem__(self, cuts):
        return cuts


def test_texts_are_compared_in_the_form_of_the_tokenizer(run_config, manifest, tmp_path):
    lines = read(manifest)
    wide = {**lines[0], "text": lines[0]["text"].replace("t", "ｔ")}
    cfg = run_config(f"model.train_ds.manifest_filepath={write(tmp_path / 'wide.json', [wide, *lines])}")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(tmp_path / "wide.json")


def test_a_relative_path_of_the_working_folder_is_trained_on(run_config, manifest, tmp_path, monkeypatch):
    lines = [{**line, "audio_filepath": Path(line["audio_filepath"]).name} for line in read(manifest)]
    path = write(tmp_path / "elsewhere.json", lines)
    monkeypatch.chdir(manifest.parent)
    cfg = run_config(f"model.train_ds.manifest_filepath={path}")
    screened(cfg, tmp_path / "run")
    assert cfg.model.train_ds.manifest_filepath == str(path)
