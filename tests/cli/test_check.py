"""`codert check`: all that training checks before its first step, without a file left behind."""

import json
from pathlib import Path

import pytest

from nemo_codert.cli import main as command
from tests.models.teacher_files import save_teacher


@pytest.fixture(scope="module")
def speech(manifest, tmp_path_factory) -> Path:
    """The manifest under a name that NeMo takes for a validation set."""
    path = tmp_path_factory.mktemp("data") / "speech.json"
    path.write_text(manifest.read_text())
    return path


@pytest.fixture
def check(monkeypatch, capsys, speech, tokenizer_dir, tmp_path):
    """Runs `codert check` in this process, with data: exit status, standard output, standard error."""
    monkeypatch.setattr("nemo_codert.cli.check.quieten_libraries", lambda: None)  # would change the whole process

    def call(*arguments: str, **given: str) -> tuple[int, str, str]:
        given = {
            "model.train_ds.manifest_filepath": speech,
            "model.validation_ds.manifest_filepath": speech,
            "model.tokenizer.dir": tokenizer_dir,
            "exp_manager.exp_dir": tmp_path / "runs",
            **given,
        }
        words = [f"{key}={value}" for key, value in given.items() if value and key not in "".join(arguments)]
        capsys.readouterr()
        status = command.main(["check", *arguments, *words])
        return status, *capsys.readouterr()

    return call


def test_a_run_that_could_start(check, tmp_path, caplog):
    status, out, err = check("--config-name=fsdd", "strategy=tandem_kd", "model.preprocessor.window_stride=0.01")
    assert status == 0, err
    assert out.startswith("strategy  tandem_kd\n")
    assert "data      train: 8 of 8 utterances used\ndata      validation: 8 of 8 utterances used\n" in out
    assert "loss      1 rnnt_student + 1 rnnt_teacher + 0.1 encoder\n" in out
    assert "Ready to train: codert train --config-name=fsdd strategy=tandem_kd model.preprocessor" in out
    doubt = "model.codert.distillation.encoder compares encoder logits of two decoders of their own"
    assert caplog.text.count(doubt) == 1 and "what is determined: prior: mean_prediction, at: joint, or" in caplog.text
    assert [*tmp_path.iterdir()] == []


def test_unusable_and_doubtful_utterances_are_counted_and_no_file_is_named(check, speech, tmp_path, caplog):
    lines = [json.loads(line) for line in speech.read_text().splitlines()]
    lines[0]["text"], lines[1]["audio_filepath"] = "", "absent.wav"
    lines[2] = lines[3]
    path = tmp_path / "train.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, out, err = check(
        "strategy=student", "model.preprocessor.window_stride=0.01", f"model.train_ds.manifest_filepath={path}"
    )
    assert status == 0, err
    assert "strategy  student\nstudent   " in out and "teacher" not in out.partition("Ready")[0]
    assert "data      train: 6 of 8 utterances used; 1 not: " in out
    assert "worth a look: same audio and transcript as another line: 1\n" in caplog.text
    assert "2 of 8 utterances cannot be used" in caplog.text and "listed in" not in caplog.text + err
    assert "loss      1 rnnt_student\n" in out


def test_a_new_pair_passes_as_it_is(check, make_config, tmp_path):
    path, _ = save_teacher(make_config, tmp_path, "rnnt")
    folder = tmp_path / "my_pair"
    assert command.main(["new", "--teacher", path, "--output", str(folder), "--size", "1/2"]) == 0
    status, out, err = check("--config-dir", str(folder), "--config-name", "pair", **{"model.tokenizer.dir": ""})
    assert status == 0, err
    assert f"starts from {path}" in out
    assert out.startswith("strategy  static\n") and "loss      1 rnnt_student + 0.1 encoder\n" in out


@pytest.mark.parametrize(
    "arguments, messages",
    [
        (["--config-name=fssd"], ["there is no config 'fssd': did you mean 'fsdd'?"]),
        (["--multirun"], ["'--multirun' is neither an option of codert check nor KEY=VALUE"]),
        (["model.codert.temperture=2"], ["there is no key 'model.codert.temperture'"]),
        (["seed=[1"], ["config 'fsdd' cannot be composed"]),
        (
            ["model.train_ds.manifest_filepath=absent.json", "model.optim.lr=-1"],
            ["This run cannot start:\n  - ", "model.train_ds.manifest_filepath: ", "model.optim.lr is -1"],
        ),
        (["model.encoder.subsampling=cubist"], ["The model cannot be built:\n  - model.encoder"]),
        (["+model.optim.momentum=1"], ["model.optim cannot be used"]),
    ],
)
def test_faults_are_listed(arguments, messages, check, tmp_path):
    status, out, err = check(*arguments, **{"model.preprocessor.window_stride": "0.01"})
    assert status == 2
    assert out == ""
    assert "error: " in err  # progress bars may come before
    for message in messages:
        assert message in err
    assert [*tmp_path.iterdir()] == []
