"""`codert verify` where it refuses; that it works is in tests/deploy."""

import importlib.util

import pytest

from nemo_codert.export.deployment import DeploymentSettings


@pytest.fixture
def run(run_command, monkeypatch):
    """Exit status and standard error. Both programs count as installed."""
    find_spec = importlib.util.find_spec
    known = ("onnxruntime", "sherpa_onnx")
    monkeypatch.setattr("nemo_codert.config.arguments.find_spec", lambda name: name in known or find_spec(name))

    def call(*arguments) -> tuple[int, str]:
        status, _, err = run_command("verify", *arguments)
        return status, err

    return call


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "absent.nemo"], "--model is absent.nemo: no such file"),
        (["--limit", "0"], "--limit is 0, wanted 1 or more"),
        (["--show", "-1"], "--show is -1, wanted 0 or more"),
        (["--manifest", "absent.json"], "absent.json is not a file"),
    ],
)
def test_mistakes_end_in_one_message_and_status_two(run, manifest, tmp_path, arguments, message):
    (tmp_path / "model.nemo").write_text("no model")
    start = ["--model", tmp_path / "model.nemo", "--manifest", manifest, "--output-dir", tmp_path / "out"]
    status, errors = run(*start, *arguments)
    assert status == 2 and message in errors and errors.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_program_that_is_not_installed_is_named(monkeypatch, manifest):
    monkeypatch.setattr("nemo_codert.config.arguments.find_spec", lambda name: None if name == "sherpa_onnx" else name)
    with pytest.raises(ValueError, match=r'sherpa_onnx is not installed: pip install "nemo_codert\[deploy\]"'):
        DeploymentSettings("model.nemo", manifest).check()
