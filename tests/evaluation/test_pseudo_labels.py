"""Pseudo-labels of small untrained models: their confidence, both filters, and going on after a kill."""

import json
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_codert.cli import pseudo_label as command
from nemo_codert.data.manifest import read_manifest, write_manifest
from nemo_codert.evaluation import pseudo_labels, transcribe
from nemo_codert.evaluation.pseudo_labels import EMPTY, PseudoLabelSettings, pseudo_label
from tests.models.teacher_files import CTC, NO_DATA, save_teacher


def save_ctc(make_config, folder: Path) -> Path:
    cfg = make_config()
    parts = {name: cfg[name] for name in ("sample_rate", "tokenizer", "preprocessor", "encoder", "optim")}
    decoder = {**CTC["aux_ctc"]["decoder"], "feat_in": cfg.encoder.d_model}
    torch.manual_seed(3)
    model = EncDecCTCModelBPE(OmegaConf.create({**parts, "decoder": decoder, "validation_ds": NO_DATA}))
    model.save_to(str(folder / "ctc.nemo"))
    return folder / "ctc.nemo"


def _sharpened(path: str, model) -> Path:
    """Save once more, with larger logits: the confidence of an untrained model is 1e-8."""
    with torch.no_grad():
        model.joint.joint_net[-1].weight.mul_(30)
    model.save_to(path)
    return Path(path)


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory) -> dict[str, Path]:
    """A file of each kind: what untrained models transcribe is nonsense, but never twice the same."""
    from nemo_codert.models import EncDecCoDERTBPEModel

    folder = tmp_path_factory.mktemp("models")
    found = {kind: _sharpened(*save_teacher(make_config, folder, kind)) for kind in ("rnnt", "hybrid", "tdt")}
    pair = EncDecCoDERTBPEModel(make_config(validation_ds=NO_DATA))
    pair.save_to(str(folder / "pair.nemo"))
    return {**found, "ctc": save_ctc(make_config, folder), "pair": folder / "pair.nemo"}


@pytest.fixture
def audio(manifest, tmp_path) -> Path:
    """The audio of the corpus without its text, and a line whose audio is gone."""
    lines = [{key: value for key, value in line.items() if key != "text"} for line in read_manifest(manifest)]
    lines = [{**line, "speaker": f"s{i}", "utterance_id": f"u{i}"} for i, line in enumerate(lines[:5])]
    return write_manifest(tmp_path / "audio.json", [*lines, {**lines[0], "audio_filepath": "gone.wav"}])


@pytest.mark.parametrize("kind", ["rnnt", "hybrid", "tdt", "ctc", "pair"])
def test_every_kind_of_model_labels_with_confidence_and_source(kind, models, audio, tmp_path):
    labels = pseudo_label(PseudoLabelSettings(models[kind], audio, tmp_path / "out" / "labels.json"))
    lines = read_manifest(labels.files[0])
    dropped = [json.loads(line) for line in labels.files[1].read_text().splitlines()]
    assert labels.kept == len(lines) > 0 and len(lines) + len(dropped) == 6
    assert labels.dropped["audio file missing"] == 1 and set(labels.dropped) <= {"audio file missing", EMPTY}
    for line in lines:
        assert line["text"] and 0.0 < line["confidence"] <= 1.0
        assert line["source"].startswith(f"{kind}.nemo sha256:") and line["utterance_id"].startswith("u")


def test_the_texts_are_those_of_nemos_own_greedy_decoding(models, audio, tmp_path):
    labels = pseudo_label(PseudoLabelSettings(models["rnnt"], audio, tmp_path / "labels.json"))
    lines = read_manifest(labels.files[0])
    from nemo_codert.models.open_model import open_model

    assert transcribe.transcribed_texts(open_model(models["rnnt"]), lines, 4) == [line["text"] for line in lines]


def test_filters_reuse_what_was_transcribed_and_count_by_reason(models, audio, tmp_path, monkeypatch):
    settings = {"model": models["rnnt"], "manifest": audio, "output": tmp_path / "labels.json"}
    everything = read_manifest(pseudo_label(PseudoLabelSettings(**settings)).files[0])
    other = PseudoLabelSettings(**settings, agree_with=models["ctc"], max_disagreement=1e9)
    disagreements = {
        line["utterance_id"]: line["disagreement"] for line in read_manifest(pseudo_label(other).files[0])
    }
    monkeypatch.setattr(pseudo_labels, "_transcriber", None)  # nothing is decoded again
    middle = sorted(line["confidence"] for line in everything)[1]
    labels = pseudo_label(PseudoLabelSettings(**settings, min_confidence=middle))
    assert [line["confidence"] >= middle for line in everything].count(True) == labels.kept < len(everything)
    assert labels.dropped[f"confidence below {middle}"] == len(everything) - labels.kept
    summary = json.loads(labels.files[2].read_text())
    assert summary["dropped"] == labels.dropped
    found = [line["confidence"] for line in everything]
    assert [summary["confidences"][0], summary["confidences"][-1]] == [round(min(found), 3), round(max(found), 3)]
    limit = min(disagreements.values())
    chosen = pseudo_label(PseudoLabelSettings(**settings, agree_with=models["ctc"], max_disagreement=limit))
    assert chosen.kept == list(disagreements.values()).count(limit)
    with pytest.raises(
        ValueError, match=r"no label passes the filter .*confidences are \[0\.\d+, .*Lower `min_confidence`"
    ):
        pseudo_label(PseudoLabelSettings(**settings, min_confidence=1.0))


def test_a_killed_call_goes_on_where_it_stopped(models, audio, tmp_path, monkeypatch):
    whole = PseudoLabelSettings(models["rnnt"], audio, tmp_path / "whole.json", batch_size=1)
    expected = read_manifest(pseudo_label(whole).files[0])
    settings = PseudoLabelSettings(models["rnnt"], audio, tmp_path / "labels.json", batch_size=1)
    asked: list[int] = []
    original = transcribe.transcribed

    def counted(model, entries, batch_size, **options):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(entries))
        return original(model, entries, batch_size, **options)

    monkeypatch.setattr(transcribe, "transcribed", counted)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(settings)
    (store,) = tmp_path.glob("labels_rnnt_*.jsonl")
    with open(store, "ab") as file:
        file.write(b'{"text": "torn')
    asked[:] = [0, 0]
    assert read_manifest(pseudo_label(settings).files[0]) == expected
    assert asked == [0, 0, 1]  # four of five were on disk
    lines = audio.read_text().splitlines()[:2]
    audio.write_text("\n".join(lines))  # other audio: from scratch
    pseudo_label(settings)
    assert asked == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--min-confidence", "2"], "--min-confidence is 2.0, wanted a number from 0 to 1"),
        (["--agree-with", "absent.nemo"], "--agree-with is absent.nemo: no such file"),
        (["--max-disagreement", "-1"], "--max-disagreement is -1.0, wanted a word error rate"),
    ],
)
def test_bad_options_end_in_one_line(options, message, models, audio, tmp_path, capsys):
    arguments = ["--model", models["rnnt"], "--manifest", audio, "--output", tmp_path / "labels.json", *options]
    assert command.main([*map(str, arguments)]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_what_was_kept_and_dropped(models, audio, tmp_path, capsys):
    assert (
        command.main(["--model", str(models["ctc"]), "--manifest", str(audio), "--output", f"{tmp_path}/a.json"]) == 0
    )
    output = capsys.readouterr().out
    assert (
        "kept" in output and "dropped: audio file missing" in output and f"wrote {tmp_path}/a_summary.json" in output
    )
