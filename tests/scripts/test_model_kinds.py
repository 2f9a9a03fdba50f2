"""Commands that open a model take every kind that training takes as a teacher, and a CTC model where it is enough."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import open_dict

from nemo_codert.data.manifest import read_manifest, write_manifest
from nemo_codert.evaluation.transcribe import evaluate, set_decoding
from nemo_codert.export.audio_limit import check_lengths, limit_in_words, longest_seconds, seconds_per_frame
from nemo_codert.export.sherpa_onnx import network_problems
from nemo_codert.export.stock_file import transcribing
from nemo_codert.models.open_model import networks_of, open_model
from tests.conftest import SENTENCES, conformer, lstm
from tests.evaluation.test_pseudo_labels import save_ctc
from tests.models.teacher_files import save_teacher

KINDS = ("rnnt", "hybrid", "tdt", "hybrid_tdt")


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory) -> dict[str, Path]:
    """An untrained model of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    found = {kind: Path(save_teacher(make_config, folder, kind)[0]) for kind in KINDS}
    return {**found, "ctc": save_ctc(make_config, folder)}


@pytest.fixture(scope="module")
def few(manifest, tmp_path_factory) -> Path:
    """Two utterances."""
    return write_manifest(tmp_path_factory.mktemp("few") / "few.json", read_manifest(manifest)[:2])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [*KINDS, "ctc"])
def test_a_model_of_any_kind_is_evaluated_by_its_own_decoding(run_command, models, few, tmp_path, kind):
    output = tmp_path / "said.json"
    status, table, errors = run_command("evaluate", "--model", models[kind], "--manifest", few, "--output", output)
    assert status == 0 and "few.json" in table, errors
    whole = open_model(models[kind], kinds=None)
    files = [line["audio_filepath"] for line in lines(few)]
    assert [line["pred_text"] for line in lines(output)] == [h.text for h in whole.transcribe(files, verbose=False)]
    (summary,) = lines(tmp_path / "said_summary.json")
    assert summary["parameters"] == sum(parameter.numel() for parameter in whole.parameters())


def test_models_of_several_kinds_stand_beside_each_other(run_command, models, few, monkeypatch):
    monkeypatch.setattr("nemo_codert.benchmark.model_sizes.peak_memory_of", lambda *_, **__: None)
    given = [word for kind in ("tdt", "ctc", "rnnt") for word in ("--model", models[kind])]
    status, table, errors = run_command("evaluate", *given, "--manifest", few)
    assert status == 0 and "Side by side" in table and "WER few" in table, errors


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_of_teacher_is_exported_measured_and_analyzed(run_command, models, few, tmp_path, kind):
    output = tmp_path / "copy.nemo"
    status, text, errors = run_command("export", "--model", models[kind], "--output", output)
    assert status == 0, errors
    files = [line["audio_filepath"] for line in lines(few)]
    texts = [[h.text for h in open_model(path).transcribe(files, verbose=False)] for path in (models[kind], output)]
    assert texts[0] == texts[1]
    status, text, errors = run_command(
        "latency", "--model", models["rnnt"], "--teacher", models[kind], "--manifest", few
    )  # fmt: skip
    assert status == 0 and "delay against" in text, errors
    folder = tmp_path / "logits"
    status, _, errors = run_command(
        "analyze", "--model", models[kind], "--manifest", few, "--output-dir", folder, "--utterances", "0"
    )  # fmt: skip
    assert status == 0 and (folder / "report.html").is_file(), errors


@pytest.mark.parametrize("command", ["export", "latency", "analyze", "stream"])
def test_a_ctc_model_is_refused_by_name_where_a_joint_is_needed(run_command, models, few, tmp_path, command):
    given = {
        "export": ["--output", tmp_path / "copy.nemo"],
        "latency": ["--teacher", models["rnnt"], "--manifest", few],
        "analyze": ["--manifest", few, "--output-dir", tmp_path / "logits"],
        "stream": ["--manifest", few],
    }
    status, _, errors = run_command(command, "--model", models["ctc"], *given[command])
    assert status == 2 and "is EncDecCTCModelBPE, wanted a standard RNN-T" in errors and "Traceback" not in errors


@pytest.mark.parametrize("kind", ["hybrid", "tdt"])
def test_a_hybrid_and_a_tdt_model_are_streamed(run_command, models, few, tmp_path, kind):
    output = tmp_path / "said.json"
    status, text, errors = run_command("stream", "--model", models[kind], "--manifest", few, "--output", output)
    assert status == 0 and len(lines(output)) == 2, errors


def test_a_tdt_model_is_refused_in_the_cache_aware_pipeline(run_command, models, few):
    given = ["--model", models["tdt"], "--manifest", few, "--pipeline", "cache_aware"]
    status, _, errors = run_command("stream", *given)
    assert status == 2 and "the model is a TDT model, which NeMo has in its buffered pipeline only" in errors


def test_decodings_that_a_kind_does_not_have_are_refused(models):
    tdt, ctc = (open_model(models[kind], kinds=None) for kind in ("tdt", "ctc"))
    with pytest.raises(ValueError, match="decoding is 'alsd', wanted one of greedy, .* for a TDT model"):
        set_decoding(tdt, "alsd")
    with pytest.raises(ValueError, match="decoding is 'maes', wanted one of greedy, greedy_batch for a CTC model"):
        set_decoding(ctc, "maes")
    for model, strategy in ((tdt, "malsd_batch"), (ctc, "greedy")):
        set_decoding(model, strategy)
        assert model.cfg.decoding.strategy == strategy
    with pytest.raises(ValueError, match="this model is a EncDecCTCModelBPE: leave the branch out"):
        transcribing(ctc, branch="teacher")


def test_a_tdt_model_goes_into_sherpa_onnx_where_its_durations_are_their_places(models):
    networks = networks_of(open_model(models["tdt"]))
    assert network_problems(networks, [0, 1, 2]) == []
    (problem,) = network_problems(networks, [0, 1, 4])
    assert problem.startswith("model.decoding.durations is [0, 1, 4], sherpa-onnx takes the place of a duration")
    networks.encoder.att_context_style, networks.encoder.att_context_size = "chunked_limited", [4, 1]
    (problem,) = network_problems(networks, [0, 1, 2])
    assert problem.startswith("the model is a TDT model with a cache-aware encoder")


# ---- one normalisation, one metric ----------------------------------------------------------------------------------


@pytest.fixture
def repeating(monkeypatch):
    """Makes every model transcribe the texts of SENTENCES."""

    def texts(model, entries, batch_size):
        return [SENTENCES[int(Path(entry["audio_filepath"]).stem)] for entry in entries]

    monkeypatch.setattr("nemo_codert.evaluation.transcribe.transcribed_texts", texts)


@pytest.mark.parametrize("change", [lambda text: text.replace("t", "ｔ"), lambda text: f" {text.replace(' ', '  ')}"])
def test_references_are_counted_in_the_form_that_the_tokenizer_writes(models, manifest, tmp_path, repeating, change):
    given = [{**line, "text": change(line["text"])} for line in read_manifest(manifest)]
    found = evaluate(open_model(models["rnnt"]), write_manifest(tmp_path / "wide.json", given))
    assert found.errors.errors == 0 and found.errors.words == sum(len(text.split()) for text in SENTENCES)
    for line, before in zip(found.predictions, given, strict=True):
        if before["text"].split() == line["text"].split():
            assert line["text"] == before["text"] and "text_given" not in line
        else:
            assert line["text_given"] == before["text"] and line["text"] == line["pred_text"]


def test_decomposed_texts_are_no_errors_without_a_normalising_tokenizer(models, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_codert.evaluation.transcribe.transcribed_texts", lambda *_: ["été"])
    line = {**read_manifest(manifest)[0], "text": unicodedata.normalize("NFD", "été")}
    model = open_model(models["ctc"], kinds=None)
    monkeypatch.setattr(model, "tokenizer", None)
    assert evaluate(model, write_manifest(tmp_path / "nfd.json", [line])).errors.errors == 0


def test_a_model_with_use_cer_is_evaluated_in_characters_and_named_so(run_command, models, few, tmp_path):
    model = open_model(models["rnnt"])
    with open_dict(model.cfg):
        model.cfg.use_cer = True
    model.save_to(str(tmp_path / "cer.nemo"))
    output = tmp_path / "said.json"
    status, table, _ = run_command(
        "evaluate", "--model", tmp_path / "cer.nemo", "--manifest", few, "--output", output
    )  # fmt: skip
    (summary,) = lines(tmp_path / "said_summary.json")
    (figures,) = summary["sets"]
    characters = sum(len(line["text"]) for line in lines(few))
    assert status == 0 and "CER" in table and "characters" in table and "WER" not in table
    assert figures["metric"] == "CER" and figures["characters"] == characters
    assert "cer" in figures and not {"wer", "words"} & figures.keys()
    card = tmp_path / "copy.nemo"
    assert run_command("export", "--model", tmp_path / "cer.nemo", "--output", card, "--wer", output)[0] == 0
    text = card.with_suffix(".md").read_text()
    assert "## Character error rate" in text and f"| few | 2 | {characters} | " in text and "WER" not in text


# ---- channels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(manifest, tmp_path) -> tuple[Path, Path]:
    """Manifests of the same two sounds: channels of one file, and a file each."""
    sounds = [soundfile.read(line["audio_filepath"], dtype="float32") for line in read_manifest(manifest)[6:]]
    rate, length = sounds[0][1], min(len(sound) for sound, _ in sounds)
    both = np.stack([sound[:length] for sound, _ in sounds], axis=1)
    soundfile.write(tmp_path / "call.wav", both, rate, subtype="FLOAT")
    for channel in (0, 1):
        soundfile.write(tmp_path / f"{channel}.wav", both[:, channel], rate, subtype="FLOAT")
    shared = {"duration": length / rate, "text": "a"}
    channels = [{"audio_filepath": "call.wav", "channel": channel, **shared} for channel in (0, 1)]
    apart = [{"audio_filepath": f"{channel}.wav", **shared} for channel in (0, 1)]
    return write_manifest(tmp_path / "call.json", channels), write_manifest(tmp_path / "apart.json", apart)


@pytest.mark.parametrize("command", ["evaluate", "stream"])
def test_the_channel_of_a_line_is_transcribed(run_command, models, call, tmp_path, command):
    said = []
    for number, manifest in enumerate(call):
        output = tmp_path / f"said_{number}.json"
        status, _, errors = run_command(command, "--model", models["rnnt"], "--manifest", manifest, "--output", output)
        assert status == 0, errors
        said.append([line["pred_text"] for line in lines(output)])
    assert said[0] == said[1] and said[0][0] != said[0][1]


def test_a_file_of_two_channels_is_mixed_down(models, call, tmp_path):
    mixed = [{key: value for key, value in lines(call[0])[0].items() if key != "channel"}]
    both, rate = soundfile.read(tmp_path / "call.wav", dtype="float32")
    soundfile.write(tmp_path / "mixed.wav", both.mean(axis=1), rate, subtype="FLOAT")
    model = open_model(models["rnnt"])
    texts = [
        evaluate(model, write_manifest(tmp_path / f"{name}.json", [{**mixed[0], "audio_filepath": f"{name}.wav"}]))
        for name in ("call", "mixed")
    ]
    assert texts[0].predictions[0]["pred_text"] == texts[1].predictions[0]["pred_text"]


# ---- length ---------------------------------------------------------------------------------------------------------


def test_the_longest_audio_of_an_export_is_told_in_seconds(run_command, make_config, tmp_path):
    encoder = {**conformer(layers=1), "pos_emb_max_len": 75}  # 75 frames of 40 ms
    path, model = save_teacher(make_config, tmp_path, "rnnt", teacher=encoder)
    assert longest_seconds(model.encoder, seconds_per_frame(model)) == pytest.approx(3.0)
    status, text, _ = run_command("export", "--model", path, "--output", tmp_path / "m.onnx", "--format", "onnx")
    assert status == 0
    assert "audio of at most 3 seconds at a time (encoder.pos_emb_max_len is 75 frames of 40 ms)" in text
    status, text, _ = run_command("export", "--model", path, "--output", tmp_path / "m.nemo")
    assert status == 0 and "seconds" not in text  # NeMo's own table grows
    entries = [{"audio_filepath": f"{seconds}.wav", "duration": seconds} for seconds in (2.9, 3.5)]
    check_lengths(entries[:1], model.encoder, 0.04)
    with pytest.raises(ValueError, match=r"1 utterances are longer than 3 seconds.*pos_emb_max_len.*\n  - 3\.5\.wav"):
        check_lengths(entries, model.encoder, 0.04)


def test_a_table_that_is_too_short_for_nemos_export_is_named(run_command, make_config, tmp_path):
    path, _ = save_teacher(make_config, tmp_path, "rnnt", teacher={**conformer(layers=1), "pos_emb_max_len": 21})
    status, _, errors = run_command("export", "--model", path, "--output", tmp_path / "m.onnx", "--format", "onnx")
    assert status == 2 and "encoder.pos_emb_max_len is 21, wanted 64 or more" in errors
    assert not list(tmp_path.glob("*.onnx"))


def test_encoders_without_such_a_table_have_no_limit(make_model):
    local = {**conformer(layers=1), "self_attention_model": "rel_pos_local_attn", "att_context_size": [8, 8]}
    for encoder in (lstm(), local):
        assert limit_in_words(make_model("tandem", student=encoder).student_encoder, 0.04) == ""


def test_verify_names_audio_that_is_too_long(run_command, make_config, few, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_codert.export.deployment.PROGRAMS", ())
    path, _ = save_teacher(make_config, tmp_path, "rnnt", teacher={**conformer(), "pos_emb_max_len": 21})
    status, _, errors = run_command(
        "verify", "--model", path, "--manifest", few, "--output-dir", tmp_path / "deployed"
    )  # fmt: skip
    assert status == 2 and "longer than 0.84 seconds" in errors and "1.wav: 0.9 s" in errors
    assert not (tmp_path / "deployed").exists()
