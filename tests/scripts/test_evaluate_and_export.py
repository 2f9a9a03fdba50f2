"""`codert export` and `codert evaluate`, and what evaluation counts."""

import copy
import json
from pathlib import Path

import pytest
import soundfile
import torch

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"


@pytest.fixture
def run(run_command):
    """A command by its name, and its arguments."""
    return run_command


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory):
    """Files of an untrained pair that says something, and of a lone student with an additive joint."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.export.stock_file import save_model
    from nemo_codert.models import EncDecCoDERTBPEModel, student_config

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    pair = EncDecCoDERTBPEModel(make_config("tandem_kd", ADDITIVE))
    with torch.no_grad():
        pair.joint.pred.weight.mul_(100)
        pair.student_joint.pred.weight.mul_(100)
    lone = EncDecRNNTBPEModel(student_config(make_config("tandem_kd", ADDITIVE)))
    return {
        "pair": save_model(pair, folder / "pair.nemo"),
        "student": save_model(pair.student_model(), folder / "student.nemo"),
        "lone": save_model(lone, folder / "lone.nemo"),
        "folder": folder,
    }


@pytest.fixture(scope="module")
def student(models):
    """The restored student, for tests that only transcribe with it."""
    from nemo_codert.models.open_model import open_model

    return open_model(models["student"])


def predictions(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "source, options, hidden",
    [
        ("pair", ["--joint", "compact"], 2 * (16 + 20)),
        ("pair", ["--joint", "narrow", "--branch", "teacher"], 24 + 20),
        ("lone", ["--joint", "narrow"], 16 + 20),
        ("lone", [], 2 * 33),
        ("student", [], 2 * 33),
    ],
)
def test_a_student_file_is_exported_from_each_kind_of_model(run, models, tmp_path, source, options, hidden):
    from nemo_codert.models.open_model import open_model

    output = tmp_path / "new" / "student.nemo"
    status, text, _ = run("export", "--model", models[source], "--output", output, *options)
    assert status == 0
    joint = open_model(output).joint
    assert type(joint).__module__.startswith("nemo.")
    assert joint.joint_hidden == hidden and f"joint_hidden {hidden}, " in text
    assert f"{output}  {output.stat().st_size / 1e6:.2f} MB" in text
    assert "EncDecRNNTBPEModel, " in text and "32 word pieces" in text
    assert sorted(path.name for path in output.parent.iterdir()) == ["student.md", "student.nemo"]


def test_onnx_files_and_the_teacher_are_exported(run, models, tmp_path):
    from nemo_codert.models.open_model import open_model

    arguments = ["--model", models["pair"], "--output"]
    status, text, _ = run("export", *arguments, tmp_path / "student.onnx", "--format", "onnx")
    assert status == 0
    names = ["decoder_joint-student.onnx", "encoder-student.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and all(name in text for name in names)
    status, _, _ = run("export", *arguments, tmp_path / "teacher.nemo", "--branch", "teacher")
    assert status == 0 and open_model(tmp_path / "teacher.nemo").cfg.encoder.n_layers == 2


@pytest.mark.parametrize("source, hidden", [("pair", None), ("student", 2 * 33)])
def test_a_folder_for_sherpa_onnx_is_exported(run, models, tmp_path, source, hidden):
    import onnx

    folder = tmp_path / "new" / "sherpa"
    options = ["--format", "sherpa-onnx", "--int8"] if source == "pair" else ["--format", "sherpa-onnx"]
    status, text, _ = run("export", "--model", models[source], "--output", folder, *options)
    assert status == 0
    kinds = ("onnx", "int8.onnx") if source == "pair" else ("onnx",)
    names = [f"{network}.{kind}" for network in ("encoder", "decoder", "joiner") for kind in kinds]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "tokens.txt"])
    assert (
        all(f"{folder / name}  " in text for name in names) and "sherpa-onnx OfflineRecognizer, 32 word pieces" in text
    )
    operations = {node.op_type for node in onnx.load(folder / "joiner.onnx").graph.node}
    assert ("Relu" in operations) == (hidden is not None)  # an additive joint stays a sum


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "sherpa-onnx"], "but --format sherpa-onnx fills a folder: give one"),
        (["--int8"], "--int8 is for --format sherpa-onnx, the format is nemo: leave it out"),
        (["--format", "onnx"], "--format onnx makes a .onnx file"),
        (["--model", "absent.nemo"], "--model is absent.nemo: no such file"),
        (["--output", "MODEL"], "--output is --model itself"),
        (["--model", "STUDENT", "--joint", "exact"], "this joint is a stock RNNTJoint already: use auto"),
        (["--model", "STUDENT", "--branch", "teacher"], "this model is a single RNN-T, not a pair"),
    ],
)
def test_export_mistakes_end_in_one_message_and_status_two(run, models, tmp_path, arguments, message):
    names = {"MODEL": str(models["pair"]), "STUDENT": str(models["student"])}
    start = ["--model", models["pair"], "--output", tmp_path / "student.nemo"]
    status, text, errors = run("export", *start, *[names.get(word, word) for word in arguments])
    assert status == 2 and message in errors and errors.startswith("error: ")
    assert "Traceback" not in errors and text == "" and list(tmp_path.iterdir()) == []


def test_evaluation_of_pair_and_student_agree_with_transcribe(run, models, student, manifest, tmp_path):
    from nemo_codert.evaluation.word_errors import total_word_errors

    entries = predictions(manifest)
    files = [entry["audio_filepath"] for entry in entries]
    texts = [hypothesis.text for hypothesis in student.transcribe(files, batch_size=3, verbose=False)]
    assert len(set(texts)) > 1 and all(texts)  # order is tested below only if the texts differ
    expected = total_word_errors([entry["text"] for entry in entries], texts)
    for name in ("pair", "student"):
        output = tmp_path / name / "predictions.json"
        arguments = ["--model", models[name], "--manifest", manifest, "--output", output, "--batch-size", "3"]
        status, table, _ = run("evaluate", *arguments)
        assert status == 0
        assert predictions(output) == [{**e, "pred_text": t} for e, t in zip(entries, texts, strict=True)]
        (summary,) = predictions(output.with_name("predictions_summary.json"))
        (figures,) = summary["sets"]
        assert figures["wer"] == pytest.approx(expected.wer) and figures["words"] == expected.words
        assert figures["utterances"] == 8 and 0 < figures["real_time_factor"] == pytest.approx(
            figures["wall_seconds"] / figures["audio_seconds"], abs=1e-3
        )
        assert summary["parameters"] == sum(parameter.numel() for parameter in student.parameters())
        for cell in ("manifest.json", "WER", f"{expected.wer:.2%}", f"{summary['parameters']:,} parameters"):
            assert cell in table
        assert sorted(path.name for path in output.parent.iterdir()) == [
            "predictions.json",
            "predictions_summary.json",
        ]


def test_the_teacher_branch_gives_the_teachers_texts(run, models, manifest, tmp_path):
    from nemo_codert.models.open_model import open_model

    output = tmp_path / "teacher.json"
    arguments = ["--model", models["pair"], "--manifest", manifest, "--branch", "teacher", "--output", output]
    assert run("evaluate", *arguments)[0] == 0
    lines = predictions(output)
    teacher = open_model(models["pair"]).teacher_model()
    texts = teacher.transcribe([line["audio_filepath"] for line in lines], batch_size=16, verbose=False)
    assert [line["pred_text"] for line in lines] == [hypothesis.text for hypothesis in texts]


def test_several_manifests_offsets_relative_paths_and_empty_references_are_evaluated(run, models, manifest, tmp_path):
    whole = predictions(manifest)[7]
    audio, rate = soundfile.read(whole["audio_filepath"])
    soundfile.write(tmp_path / "whole.wav", audio, rate)
    soundfile.write(tmp_path / "cut.wav", audio[: int(1.2 * rate)], rate)
    lines = [
        {"audio_filepath": "cut.wav", "duration": 1.2, "text": "a b"},
        {"audio_filepath": "whole.wav", "duration": 1.2, "offset": 0.0, "text": "", "speaker": "x"},
    ]
    (tmp_path / "cuts.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.json"
    manifests = ["--manifest", tmp_path / "cuts.json", "--manifest", manifest]
    status, table, _ = run("evaluate", "--model", models["lone"], *manifests, "--output", output)
    assert status == 0 and "cuts.json" in table and "manifest.json" in table
    found = predictions(output)
    assert [Path(line["manifest"]).name for line in found] == ["cuts.json"] * 2 + ["manifest.json"] * 8
    assert found[0]["pred_text"] == found[1]["pred_text"]  # the same second and a bit of the same audio
    assert found[1]["speaker"] == "x" and found[0]["audio_filepath"] == str(tmp_path / "cut.wav")
    (summary,) = predictions(tmp_path / "out_summary.json")
    assert [figures["utterances"] for figures in summary["sets"]] == [2, 8]


def test_without_a_reference_word_there_is_no_error_rate(run, models, manifest, tmp_path):
    (tmp_path / "empty.json").write_text(json.dumps({**predictions(manifest)[0], "text": ""}) + "\n")
    output = tmp_path / "new" / "folder" / "out.json"
    arguments = ["--model", models["pair"], "--manifest", tmp_path / "empty.json", "--output", output]
    status, table, _ = run("evaluate", *arguments)
    assert status == 0 and "n/a" in table and "inf" not in table
    assert predictions(output.with_name("out_summary.json"))[0]["sets"][0]["wer"] is None
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.json", "out_summary.json"]


def test_decoding_strategies_keep_the_models_other_settings(models):
    from nemo_codert.evaluation.transcribe import set_decoding
    from nemo_codert.export.stock_file import stock_of
    from nemo_codert.models.open_model import open_model

    model = stock_of(open_model(models["lone"]))  # NeMo's beam search does not end on the talkative one
    settings = copy.deepcopy(model.cfg.decoding)
    signal = 0.1 * torch.randn(8000)
    for strategy in ("greedy", "beam", "alsd", "maes", "malsd_batch"):
        model.cfg.decoding = copy.deepcopy(settings)
        set_decoding(model, strategy)
        decoding = model.cfg.decoding
        assert decoding.strategy == strategy
        assert decoding.greedy.max_symbols == 5 and decoding.beam.beam_size == 2, strategy
        if strategy != "greedy":
            assert decoding.beam.maes_num_steps == 4, strategy
        assert isinstance(model.transcribe([signal.numpy()], verbose=False)[0].text, str), strategy


def test_confidence_of_a_greedy_model_does_not_stop_beam_search(models):
    from omegaconf import OmegaConf

    from nemo_codert.evaluation.transcribe import set_decoding
    from nemo_codert.models.open_model import open_model

    model = open_model(models["student"])
    settings = OmegaConf.to_container(model.cfg.decoding)
    settings["confidence_cfg"] = {"preserve_word_confidence": True}
    model.change_decoding_strategy(OmegaConf.create(settings), verbose=False)
    set_decoding(model, "malsd_batch")
    assert isinstance(model.transcribe([0.1 * torch.randn(16000).numpy()], verbose=False)[0].text, str)


@pytest.mark.parametrize("names", [["whole", "bad"], ["bad", "whole"], ["bad"]])
@pytest.mark.parametrize("damage", ["end", "middle"])
def test_audio_that_breaks_off_is_named_wherever_it_stands(student, manifest, tmp_path, damage, names):
    from nemo_codert.evaluation.transcribe import evaluate

    audio, rate = soundfile.read(predictions(manifest)[7]["audio_filepath"])
    soundfile.write(tmp_path / "whole.flac", audio, rate)
    content = (tmp_path / "whole.flac").read_bytes()
    half = len(content) // 2
    rest = b"" if damage == "end" else bytes(200) + content[half + 200 :]  # a hole is found by decoding all only
    (tmp_path / "bad.flac").write_bytes(content[:half] + rest)
    lines = [{"audio_filepath": f"{name}.flac", "duration": 1.4, "text": "a"} for name in names]
    (tmp_path / "broken.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"bad\.flac: audio breaks off") as caught:
        evaluate(student, tmp_path / "broken.json", batch_size=1)
    assert "whole.flac" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "absent.nemo"], "--model is absent.nemo: no such file"),
        (["--manifest", "absent.json"], "absent.json is not a file"),
        (["--manifest", "EMPTY"], "empty.json is empty"),
        (["--manifest", "SILENT"], "gone.wav: audio file missing"),
        (["--decoding", "bogus"], "decoding is 'bogus', wanted one of greedy, "),
        (["--batch-size", "0"], "--batch-size is 0, wanted 1 or more"),
        (["--model", "STUDENT", "--branch", "teacher"], "this model is a single RNN-T, not a pair"),
        (["--model", "EMPTY"], "empty.json is not a .nemo or .ckpt file"),
        (["--output", "EMPTY/p.json"], "no file can be made in "),
        (["--output", "EMPTY/deep/p.json"], "no file can be made in "),
        (["--output", "/proc/nope/p.json"], "--output is /proc/nope/p.json: no file can be made in /proc/nope ("),
    ],
)
def test_evaluation_mistakes_end_in_one_message_and_status_two(run, models, manifest, tmp_path, arguments, message):
    (tmp_path / "empty.json").write_text("\n")
    silent = {"audio_filepath": "gone.wav", "duration": 1.0, "text": "a"}
    (tmp_path / "silent.json").write_text(json.dumps(silent) + "\n")
    names = {"EMPTY": tmp_path / "empty.json", "SILENT": tmp_path / "silent.json", "STUDENT": models["student"]}
    start = ["--model", models["pair"], "--manifest", manifest, "--output", tmp_path / "out.json"]
    words = [names.get(word, word.replace("EMPTY/", f"{names['EMPTY']}/")) for word in arguments]
    status, text, errors = run("evaluate", *start, *words)
    assert status == 2 and message in errors and errors.startswith("error: ")
    assert "Traceback" not in errors and text == "" and not (tmp_path / "out.json").exists()
