"""`codert demo` without its packages: what is refused, and what the page makes of samples. tests/deploy serves it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_codert.cli import demo as command
from nemo_codert.evaluation import demo
from nemo_codert.evaluation.demo import signal_of
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit


def test_samples_of_every_kind_become_one_channel_between_minus_one_and_one():
    rate, signal = signal_of((8000, np.array([[-32768, 0], [16384, 16384]], dtype=np.int16)))
    assert rate == 8000 and signal.dtype == np.float32 and signal.tolist() == [-0.5, 0.5]
    assert signal_of((8000, np.array([0.25, -1.0])))[1].tolist() == [0.25, -1.0]
    assert len(signal_of(None)[1]) == 0


@pytest.mark.parametrize("package", ["gradio", "sherpa_onnx"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nemo_codert.config.arguments.find_spec", lambda name: None if name == package else sys)
    assert command.main(["--model", str(tmp_path)]) == 2
    line = f'error: {package} is not installed: pip install "nemo_codert[demo]" (in a checkout: ".[demo]")\n'
    assert capsys.readouterr().err == line


def test_the_page_is_one_short_file_that_needs_neither_nemo_nor_torch():
    assert len(Path(demo.__file__).read_text(encoding="utf-8").splitlines()) <= 60
    code = "import sys, nemo_codert.evaluation.demo; assert not {'nemo', 'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
