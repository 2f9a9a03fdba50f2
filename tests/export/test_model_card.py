"""Model cards: what is known is in them, what is not is called unknown, and hubs and NeMo can read them."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from omegaconf import OmegaConf, open_dict

from nemo_codert.cli import export as command
from nemo_codert.export.model_card import CardOptions, Result, model_card, read_error_rates
from nemo_codert.export.stock_file import save_model
from nemo_codert.export.training_record import DataRecord, TrainingRecord, recorded_training, strategy_name
from nemo_codert.models.open_model import open_model
from tests.conftest import REPOSITORY

RECORD = TrainingRecord(
    strategy="shared_kd",
    teacher="trained in the same run",
    started_from={"student": "small.nemo"},
    train=[DataRecord("train.json", 3000, 2.5), DataRecord("more.json")],
    validation=[DataRecord("dev.json", 38, 0.03)],
    updates=1200,
    best_val_wer=0.125,
    seed=3,
    versions={"nemo_codert": "0.1.0", "torch": "2.9.0"},
)
NOTHING_SAID = CardOptions()
RESULTS = [Result("test_seen", 38, 200, 0.12, 0.08, 0.165, "beam"), Result("test_unseen", 101, 500, 0.306)]


@pytest.fixture(scope="module")
def pair(make_config):
    from nemo_codert.models import EncDecCoDERTBPEModel

    return EncDecCoDERTBPEModel(make_config("shared_kd"))


@pytest.fixture(scope="module")
def student_cfg(pair):
    return OmegaConf.to_container(pair.student_model().cfg)


@pytest.fixture
def cfg(student_cfg):
    """Config of the pair's student, without a record."""
    return OmegaConf.create(student_cfg)


@pytest.fixture
def export(monkeypatch, capsys, tmp_path):
    """Runs `codert export` in this process into tmp_path: exit status, standard error."""

    def call(model: Path, *arguments: str | Path) -> tuple[int, str]:
        line = ["--model", model, "--output", tmp_path / "tiny.nemo", *arguments]
        capsys.readouterr()
        return command.main([*map(str, line)]), capsys.readouterr().err

    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)  # would change the whole process
    return call


def card_of(cfg, results=(), options=NOTHING_SAID, name="tiny") -> str:
    about = {"name": name, "branch": "student", "parameters": 12_345, "record": recorded_training(cfg)}
    return model_card(cfg, results=results, options=options, **about)


def with_record(cfg, record: TrainingRecord = RECORD):
    with open_dict(cfg):
        cfg.nemo_codert_training = record.plain
    return cfg


def write_predictions(folder: Path, branch: str, parameters: int, wrong: int = 10) -> Path:
    """Forty utterances of two words, ten of them with one wrong word, and the summary of them."""
    lines = [
        {"audio_filepath": f"{i}.wav", "duration": 1.0, "text": "a b", "pred_text": "a c" if i < wrong else "a b"}
        for i in range(40)
    ]
    figures = {"manifest": "/data/of/someone/test_x.json", "utterances": 40, "words": 80, "wer": wrong / 80}
    summary = {"branch": branch, "parameters": parameters, "decoding": "greedy_batch", "sets": [figures]}
    (folder / "said.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "said_summary.json").write_text(json.dumps(summary) + "\n")
    return folder / "said.json"


def test_a_hub_reads_what_the_front_matter_says(cfg):
    options = CardOptions("cc-by-4.0", ("en",), ("openslr/librispeech_asr",))
    data = ModelCard(card_of(with_record(cfg), RESULTS, options)).data
    assert (data.license, data.language, data.datasets) == ("cc-by-4.0", ["en"], ["openslr/librispeech_asr"])
    assert (data.library_name, data.pipeline_tag) == ("nemo", "automatic-speech-recognition")
    assert {"CoDERT", "knowledge-distillation", "NeMo"} <= set(data.tags) and data.metrics == ["wer"]
    found = [(each.dataset_name, each.metric_type, each.metric_value) for each in data.eval_results]
    assert found == [("test_seen", "wer", 12.0), ("test_unseen", "wer", 30.6)] and data.model_name == "tiny"


def test_the_text_tells_data_strategy_teacher_rates_and_versions(cfg):
    text = card_of(with_record(cfg), RESULTS, CardOptions("cc-by-4.0"))
    for line in (
        "class `EncDecRNNTBPEModel`: 12,345 parameters, 32 word pieces, audio at 16000 Hz",
        "- Strategy: `shared_kd` (beside a teacher, with one prediction network",
        "- Teacher: trained in the same run",
        "- Training data: `train.json` (3,000 utterances, 2.50 hours), `more.json` (hours unknown)",
        "- Validation data: `dev.json` (38 utterances, 0.03 hours); WER of the chosen checkpoint: 12.50%",
        "- Updates: 1,200; seed: 3",
        "- The student started from: small.nemo",
        "- Trained with nemo_codert 0.1.0, torch 2.9.0",
        "| test_seen | 38 | 200 | 12.00% | 8.0% to 16.5% | beam |",
        "| test_unseen | 101 | 500 | 30.60% | unknown | unknown |",
        "## Licence\n\ncc-by-4.0\n",
        "nemo_toolkit 3.",
    ):
        assert line in text, line


def test_a_hybrid_model_is_called_what_it_is(cfg):
    cfg.target = cfg.target.replace("EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel")
    assert "class `EncDecHybridRNNTCTCBPEModel`: 12,345" in card_of(cfg)


def test_what_is_not_known_is_called_unknown_and_nothing_is_invented(cfg):
    text = card_of(cfg)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "unknown" and not {"language", "datasets", "model-index", "metrics"} & data.keys()
    assert "knowledge-distillation" not in data["tags"]
    assert "- Strategy, teacher, data and updates: unknown (the file has no record of its training)" in text
    assert "Unknown: this card was written without test results." in text and "- Language: unknown" in text
    assert "Unknown: none was stated when this card was written. Ask before you use the model." in text


@pytest.mark.parametrize(
    "name", ["student", "teacher", "static", "static_shared", "tandem", "tandem_kd", "shared", "shared_kd"]
)
def test_a_strategy_is_called_by_the_name_of_the_file_that_sets_it(name):
    base = OmegaConf.create(
        {"train": "pair", "model": {"codert": {"teacher": "co_trained", "share_decoder": True, "distillation": {}}}}
    )
    cfg = OmegaConf.merge(base, OmegaConf.load(REPOSITORY / "conf" / "strategy" / f"{name}.yaml"))
    assert strategy_name(cfg.train, cfg.model.codert) == name
    if name == "static":
        cfg.model.codert.distillation.encoder.weight = 0.0
        assert strategy_name(cfg.train, cfg.model.codert) == "static without distillation"


@pytest.mark.parametrize("name", ["ema", "two_views"])
def test_so_is_one_whose_term_has_a_name_with_the_name_of_the_term(name):
    cfg = OmegaConf.load(REPOSITORY / "conf" / "strategy" / f"{name}.yaml")
    assert strategy_name("pair", cfg.model.codert) == f"{name} by views"


def test_results_are_read_with_an_interval_and_without_paths(tmp_path):
    path = write_predictions(tmp_path, "student", 5)
    for given in (path, tmp_path / "said_summary.json"):
        (result,) = read_error_rates(given, branch="student", parameters=5)
        assert (result.name, result.utterances, result.words, result.decoding) == ("test_x", 40, 80, "greedy_batch")
        assert result.wer == 0.125 and 0.04 < result.low < 0.125 < result.high < 0.21
    path.unlink()
    (result,) = read_error_rates(tmp_path / "said_summary.json", branch="student", parameters=5)
    assert (result.wer, result.low, result.high) == (0.125, None, None)


def test_results_that_are_none_or_of_another_model_are_refused(tmp_path):
    path = write_predictions(tmp_path, "student", 5)
    for branch, parameters, message in (("teacher", 5, "its branch is 'student'"), ("student", 6, "parameters is 5")):
        with pytest.raises(ValueError, match=rf"said\.json is of another model: .*{message}"):
            read_error_rates(path, branch=branch, parameters=parameters)
    with pytest.raises(ValueError, match="absent.json is not a file"):
        read_error_rates(tmp_path / "absent.json", branch="student", parameters=5)
    (tmp_path / "plain.json").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n')
    with pytest.raises(ValueError, match="plain.json has no pred_text"):
        read_error_rates(tmp_path / "plain.json", branch="student", parameters=5)
    (tmp_path / "odd_summary.json").write_text("[]")
    with pytest.raises(ValueError, match="odd_summary.json is not a summary"):
        read_error_rates(tmp_path / "odd_summary.json", branch="student", parameters=5)


def test_a_record_goes_with_the_pair_into_the_exported_student_and_its_card(pair, export, tmp_path):
    with_record(pair.cfg)
    path = save_model(pair, tmp_path / "pair.nemo")
    with open_dict(pair.cfg):
        pair.cfg.pop("nemo_codert_training")
    stored = open_model(path)
    assert recorded_training(stored.cfg) == RECORD
    parameters = sum(parameter.numel() for parameter in stored.student_model().parameters())
    predictions = write_predictions(tmp_path, "student", parameters)
    status, errors = export(path, "--wer", predictions, "--license", "cc-by-4.0", "--language", "en")
    assert status == 0, errors
    text = (tmp_path / "tiny.md").read_text()
    student = open_model(tmp_path / "tiny.nemo")
    assert student.cfg.model_card == text and recorded_training(student.cfg) == RECORD
    assert "| test_x | 40 | 80 | 12.50% | " in text and "`train.json` (3,000 utterances, 2.50 hours)" in text
    assert str(tmp_path) not in text and "/data/of/someone" not in text
    assert text.startswith("---\nlanguage:\n- en\nlicense: cc-by-4.0\n")


def test_a_card_that_cannot_be_written_leaves_no_file(pair, export, tmp_path):
    model = save_model(pair, tmp_path / "pair.nemo")
    for arguments, message in (
        (["--wer", tmp_path / "absent.json"], "absent.json is not a file"),
        (["--format", "onnx"], "--format onnx makes a .onnx file"),
    ):
        status, errors = export(model, *arguments)
        assert status == 2 and message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["pair.nemo"]


def test_card_options_without_a_card_are_refused(pair, tmp_path, monkeypatch, capsys):
    model = save_model(pair, tmp_path / "pair.nemo")
    line = [
        "--model",
        model,
        "--output",
        tmp_path / "x.onnx",
        "--format",
        "onnx",
        "--license",
        "mit",
    ]
    assert command.main([*map(str, line)]) == 2
    assert "--license is for the model card, which --format onnx has none of" in capsys.readouterr().err
