"""The quickstart around its training: paths on the command line, and the output folder."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch.utils.tensorboard import SummaryWriter

from nemo_codert.cli import quickstart
from nemo_codert.cli.quickstart_report import (
    Findings,
    StockTexts,
    did_it_help,
    write_quickstart_report,
)
from nemo_codert.config.hydra_text import hydra_value
from nemo_codert.evaluation.bootstrap import Reduction
from nemo_codert.evaluation.robustness import Recording
from nemo_codert.evaluation.word_errors import WordErrors, word_errors


@pytest.mark.parametrize(
    "path",
    [
        "runs/plain",
        "my runs/first, second",
        "a (b) [c] {d}",
        "key=value:other",
        'it\'s "quoted"',
        "''",
        "back\\slash",
        "back\\\\slash",
        "slash before \\' and at the end\\",
        "~a %b &c ;d !e #f",
    ],
)
def test_a_path_arrives_through_hydras_command_line_as_it_is(path):
    override = OverridesParser.create().parse_override(f"exp_manager.exp_dir={hydra_value(path)}")
    assert override.value() == path


def test_a_new_an_empty_and_its_own_folder_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        quickstart.claim(folder)
        (folder / "corpus").mkdir(), (folder / "pair").mkdir(), (folder / "report.md").write_text("earlier")
        quickstart.claim(folder)
        assert {path.name for path in folder.iterdir()} == {".quickstart", "corpus"}


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(SystemExit, match="holds something else than a quickstart: give a new folder"):
        quickstart.claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def program(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_training_that_fails_in_the_background_ends_the_wait_at_once(tmp_path):
    log = tmp_path / "alone.log"
    log.write_text("first\nepoch 1\rerror: no such key\n")
    running = {"alone": program("raise SystemExit(3)"), "teacher": program("import time; time.sleep(60)")}
    try:
        last = r"alone failed with exit status 3 \(all of it: .*\):\n  first\n  epoch 1\n  error: no such key"
        with pytest.raises(SystemExit, match=last):
            quickstart.wait_for(running, log)
    finally:
        running["teacher"].kill(), running["teacher"].wait()
    with pytest.raises(SystemExit, match="The training pair failed with exit status 4, see its message above"):
        quickstart.wait_for({"alone": program(""), "pair": program("raise SystemExit(4)")}, log)
    quickstart.wait_for({"alone": program(""), "pair": program("")}, log)


def test_the_student_gets_the_teacher_that_was_trained_and_all_cores(tmp_path, monkeypatch):
    started = {}

    def start(corpus, folder, strategy, options, *, output=None, overrides=(), share=0.5):
        (folder / "quickstart" / "2026-01-01").mkdir(parents=True)
        (folder / "quickstart" / "2026-01-01" / "config.yaml").touch()
        started[folder.name] = (strategy, list(overrides), share)
        return program("")

    monkeypatch.setattr(quickstart, "start_training", start)
    runs = quickstart.train_all(tmp_path / "corpus", tmp_path, None)
    assert runs == {name: tmp_path / name / "quickstart" / "2026-01-01" for name in ("alone", "teacher", "pair")}
    given = f"model.codert.teacher_checkpoint={hydra_value(runs['teacher'] / 'teacher.nemo')}"
    expected = {"alone": ("student", [], 0.5), "teacher": ("teacher", [], 0.5), "pair": ("static", [given], 1.0)}
    assert started == expected


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_no_training_outlives_an_interrupted_quickstart(sent, tmp_path, monkeypatch):
    started = []

    def start(*_, **__):
        started.append(program("import time; time.sleep(60)"))
        return started[-1]

    monkeypatch.setattr(quickstart, "start_training", start)
    monkeypatch.setattr(quickstart, "wait_for", lambda *_: os.kill(os.getpid(), sent) or time.sleep(1))
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            quickstart.train_all(tmp_path, tmp_path, None)
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert len(started) == 2 and all(process.returncode for process in started)
    assert signal.getsignal(signal.SIGTERM) == before[1]


def predictions(folder, hypotheses, parameters):
    """Write the transcripts of three sentences by three voices, as a training leaves them."""
    folder.mkdir(parents=True)
    said = [("turn the light on", "ann"), ("turn the radio off", "bob"), ("stop", "eve")]
    lines = [
        {"text": text, "speaker": speaker, "pred_text": hypothesis}
        for (text, speaker), hypothesis in zip(said, hypotheses, strict=True)
    ]
    errors = sum(word_errors(line["text"], line["pred_text"]).errors for line in lines)
    figures = {"utterances": 3, "words": 9, "wer": errors / 9, "real_time_factor": 0.02}
    (folder / "test.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "test_summary.json").write_text(json.dumps({"parameters": parameters, "sets": [figures]}))


@pytest.fixture
def findings(tmp_path) -> Findings:
    run = {name: tmp_path / name / "DATE" for name in ("alone", "teacher", "pair")}
    predictions(run["alone"] / "predictions" / "student", ["turn a light on", "turn a radio off", "stop it"], 1000)
    predictions(run["pair"] / "predictions" / "student", ["turn a light on", "turn the radio off", "stop"], 1000)
    predictions(run["pair"] / "predictions" / "teacher", ["turn the light on", "turn the radio off", "stop"], 4000)
    recordings = [Recording("as it is", WordErrors(words=9)), Recording("20 dB quieter", WordErrors(1, 0, 0, 9))]
    stock = StockTexts("EncDecRNNTBPEModel", "RNNTJoint", [("stop", "stop")])
    return Findings(run, stock, recordings, minutes=9.5)


def log(folder, curves):
    writer = SummaryWriter(folder)
    for name, points in curves.items():
        for step, value in points:
            writer.add_scalar(name, value, step)
    writer.close()


def test_the_report_begins_with_what_the_teacher_changed(findings, tmp_path):
    losses = {"train_distillation_loss": [(0, 9.0), (10, 0.5), (20, 0.9)], "train_rnnt_loss_student": [(10, 3.0)]}
    log(findings.runs["pair"], {**losses, "val_wer": [(20, 0.125)], "val_wer_teacher": [(20, 0.0625)]})
    log(findings.runs["alone"], {"val_wer": [(10, 0.5), (20, 0.25)]})
    log(findings.runs["teacher"], {"val_wer": [(10, 0.25), (20, 0.0625)]})
    printed = write_quickstart_report(tmp_path, findings, "bin/codert")
    report = (tmp_path / "report.md").read_text()
    sentence = report.split("\n\n")[1]
    assert "66.7% fewer word errors than alone: 11.1% against 33.3% WER of 9 words by 3 unseen voices" in sentence
    assert "too few words" in sentence and sentence in printed
    assert "| student alone            |      1,000 |    33.3% |" in report
    assert "12.5% (student with its teacher), 25.0% (alone) and\n6.2% (teacher, " in report
    assert "goes from 9 to 0.9 nats an utterance" in report
    assert sentence.endswith("codert compare --max-steps measures it.") and "(50.0% to 25.0% WER on dev" in sentence
    assert "**Warning**: 20 dB quieter: WER moves by +11.1 points" in report and "| stop | stop |" in report
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    commands = printed.split("Next:\n\n")[1].replace("\\\n", " ").splitlines()
    assert len(commands) == 3 and all(command.startswith("bin/codert ") for command in commands)
    for command in commands:
        module = importlib.import_module(f"nemo_codert.cli.{command.split()[1]}")
        parse = module.parse_arguments if hasattr(module, "parse_arguments") else module.parser().parse_args
        parse(command.split()[2:])
    assert f"Student      {tmp_path / 'student.nemo'}" in printed


def test_more_errors_are_called_more(findings):
    worse = Reduction(-0.5, -0.9, -0.1, words=900, recordings=100, seeds=1, speakers=6)
    assert "makes 50.0% more word errors than alone" in did_it_help(worse, findings)
    assert "the 95% interval -90% to -10%: worse." in did_it_help(worse, findings)
