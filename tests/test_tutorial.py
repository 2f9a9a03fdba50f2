"""docs/tutorial.ipynb runs from its first cell to its last, and shows what it made when it was run in full."""

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager

from nemo_codert.cli.main import SUBCOMMANDS
from tests.conftest import REPOSITORY

TUTORIAL = REPOSITORY / "docs" / "tutorial.ipynb"


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def text_of(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


@pytest.mark.deploy
@pytest.mark.slow
def test_the_tutorial_runs_with_little_speech_and_few_steps(tmp_path, monkeypatch, preloaded_python):
    monkeypatch.setenv("TUTORIAL_FOLDER", str(tmp_path / "run"))
    monkeypatch.setenv("TUTORIAL_STEPS", "4")
    monkeypatch.setenv("TUTORIAL_UTTERANCES", "40")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%matplotlib inline"))  # as where pyplot is not there already
    kernel = AsyncKernelManager(kernel_name="python3")
    launch = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    kernel.kernel_spec.argv = [preloaded_python, "-c", launch, "-f", "{connection_file}"]
    settings = {"metadata": {"path": str(TUTORIAL.parent)}}
    nbclient.NotebookClient(notebook, kernel, timeout=600, resources=settings).execute()
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"corpus", "curves", "curves.png", "logits", "pair.nemo", "student.nemo", "teacher.nemo"} <= made
    texts = [text_of(cell).count("reference: ") for cell in notebook.cells if cell.cell_type == "code"]
    assert max(texts) == 5  # stock NeMo transcribed five files
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == 3


def test_the_tutorial_is_kept_with_its_pictures_and_names_no_folder_of_a_machine():
    text = TUTORIAL.read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 3
    assert not any(output["output_type"] == "error" for output in outputs(notebook))
    shown = "\n".join(text_of(cell) for cell in cells)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", shown)


def test_every_document_and_command_that_the_tutorial_names_is_there():
    source = "".join("".join(cell["source"]) for cell in json.loads(TUTORIAL.read_text(encoding="utf-8"))["cells"])
    for target in re.findall(r"\]\(([\w./]+)\)", source):
        assert (TUTORIAL.parent / target).exists(), target
    names = re.findall(r'codert\(\s*"(\w+)"', source)
    assert names == ["analyze", "evaluate", "verify"] and set(names) <= SUBCOMMANDS.keys()
    assert Path(REPOSITORY / "requirements-deploy.txt").is_file()
