"""`codert prepare`: what it writes and prints, and what it refuses."""

import inspect
import re
from pathlib import Path

import pytest

from nemo_codert.cli import prepare
from nemo_codert.data.corpora.digits import make_digit_corpus
from nemo_codert.data.corpora.librispeech import make_librispeech_corpus
from nemo_codert.data.corpora.mixtures import make_mixtures
from nemo_codert.data.corpora.synthetic import make_synthetic_corpus
from nemo_codert.data.corpora.words import make_word_corpus


def run(*arguments: str | Path) -> int:
    return prepare.main([*map(str, arguments)])


def test_synthetic_writes_below_the_output_folder_and_prints_a_table(monkeypatch, capsys, tmp_path):
    arguments = ["--output-dir", tmp_path / "out", "--train-utterances", "50", "--dev-utterances", "3"]
    arguments += ["--test-utterances", "4", "--vocab-size", "48"]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second run refuses nothing
        assert run("synthetic", *arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["audio", "dev.json", "test.json", "tokenizer", "train.json"]
    table = capsys.readouterr().out
    for name, count in (("train", 50), ("dev", 3), ("test", 4)):
        assert re.search(rf"^{name} +{count} +0\.\d\d  ", table, re.MULTILINE)
    assert re.search(rf"^tokenizer +48 pieces +{re.escape(str(tmp_path / 'out' / 'tokenizer'))}$", table, re.MULTILINE)


def test_relative_output_folders_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["--train-utterances", "50", "--dev-utterances", "1", "--test-utterances", "1", "--vocab-size", "48"]
    assert run("synthetic", "--output-dir", "data/new", *arguments) == 0
    assert (tmp_path / "data" / "new" / "train.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["synthetic", "--dev-utterances", "0"], "dev_utterances is 0"),
        (["fsdd", "--fsdd-dir", "absent"], "absent is not a folder"),
        (["fsdd", "--fsdd-dir", "absent", "--snr", "15", "0"], "snr is (15.0, 0.0)"),
        (["words", "--words-dir", "absent"], "absent is not a folder"),
        (["mixtures", "--manifest", "absent"], "absent is not a file"),
        (["mixtures", "--manifest", "absent", "--sir", "5", "-5"], "sir is (5.0, -5.0)"),
        (["librispeech", "--corpus-dir", "absent"], "absent is not a folder"),
        (["librispeech", "--corpus-dir", ".", "--parts", "music"], "part 'music'"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--output-dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_every_example_of_the_help_is_understood():
    commands = re.findall(r"^codert prepare (.*)$", prepare.EXAMPLES.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 10 and all(command in prepare.parser().format_help() for command in commands[:2])
    for command in commands:
        assert prepare.parser().parse_args(command.split()).output_dir


@pytest.mark.parametrize(
    "recipe, arguments",
    [
        (make_synthetic_corpus, ["synthetic"]),
        (make_digit_corpus, ["fsdd", "--fsdd-dir", "in"]),
        (make_word_corpus, ["words", "--words-dir", "in"]),
        (make_mixtures, ["mixtures", "--manifest", "in"]),
        (make_librispeech_corpus, ["librispeech", "--corpus-dir", "in"]),
    ],
)
def test_the_defaults_are_those_of_the_recipes(recipe, arguments):
    options = vars(prepare.parser().parse_args([*arguments, "--output-dir", "out"]))
    parameters = inspect.signature(recipe).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert {name: options[name] for name in defaults} == defaults
    assert set(options) == {p.name for p in parameters} | {"corpus"}


@pytest.mark.parametrize("corpus", ["fsdd", "words", "mixtures", "librispeech"])
def test_the_source_of_real_speech_must_be_given(corpus, capsys):
    with pytest.raises(SystemExit):
        prepare.parser().parse_args([corpus, "--output-dir", "out"])
    assert "required" in capsys.readouterr().err
