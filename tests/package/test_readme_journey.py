"""README.md from top to bottom with the installed package, outside the checkout: every command is one process."""

import pytest

from tests.scripts.test_readme_commands import FEW_STEPS, README, TINY_COMPARISON, TINY_CORPUS, names_in, walk


@pytest.mark.package
def test_the_commands_of_the_readme_run_as_written(installed, monkeypatch):
    longer = {
        "prepare synthetic": TINY_CORPUS,
        "train": FEW_STEPS,
        "compare": TINY_COMPARISON,
        "analyze": ["--utterances", "1"],
    }
    folder, printed = installed.folder / "journey", []
    folder.mkdir()
    monkeypatch.setattr(installed, "folder", folder)
    done = walk(README, longer, folder, codert=lambda words: printed.append(installed.codert(*words).stdout))
    journey = ["prepare", "train", "cp", "new", "check", "train", "compare", "analyze", "evaluate", "export"]
    assert done == ["--help", *journey]
    out = "".join(printed)
    assert "WER" in out and "| student |" in out.replace("  ", " ")
    assert {"pair.nemo", "student.nemo", "student.md", "data_report.json"} <= names_in(
        folder / "runs" / "pair" / "latest"
    )
    assert (folder / "my_pair" / "pair.yaml").is_file()
    assert "student" in (folder / "runs" / "comparison" / "table.md").read_text()
    assert (folder / "runs" / "logits" / "report.html").is_file()
    assert {"encoder.onnx", "encoder.int8.onnx", "joiner.onnx", "tokens.txt"} <= names_in(folder / "sherpa")
