"""The README's commands, taken from its text and run in its order on a tiny corpus with a few steps.

`make` targets are left out here: CI is one of them, and the other is the quickstart.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
SPEAKERS = ("jackson", "nicolas", "theo", "yweweler", "george")

# Appended to every training command: a pair small enough to take two steps in a second.
SHORT = [
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "model.train_ds.batch_size=4",
    "model.encoder.n_layers=1",
    "model.encoder.d_model=32",
    "model.model_defaults.enc_hidden=32",
    "model.student.encoder.n_layers=1",
    "model.student.encoder.d_model=32",
]


def shell_commands(text: str) -> list[list[str]]:
    """Command lines of all bash blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with `FSDD` in the layout of the Free Spoken Digit Dataset, its digits being tones."""
    folder = tmp_path_factory.mktemp("readme")
    recordings = folder / "FSDD" / "recordings"
    recordings.mkdir(parents=True)
    time = np.arange(2400) / 8000
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in (0, 1, 5, 6, 10, 11):
                tone = 0.3 * np.sin(2 * np.pi * (300 + 150 * digit + take) * time)
                soundfile.write(recordings / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    return folder


def run(command: list[str], folder: Path) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{shlex.join(command)}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


def script(command: list[str]) -> list[str]:
    return [sys.executable, str(REPOSITORY / command[1]), *command[2:]]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_written(workplace):
    commands = [words for words in shell_commands(README) if words[0] == "python" and "..." not in words]
    names = [Path(words[1]).name for words in commands]
    assert names == ["prepare_data.py", "train.py", "evaluate.py", "export_student.py", "export_student.py"]
    prepare, train, evaluate, *exports = commands
    run([*script(prepare), "--train-utterances", "12"], workplace)
    run([*script(train), *SHORT], workplace)
    (pair,) = workplace.glob("runs/fsdd/fsdd/*/pair.nemo")
    for name in ("pair.nemo", "student.nemo"):
        (workplace / name).write_bytes((pair.parent / name).read_bytes())
    assert "WER" in run(script(evaluate), workplace)
    for export in exports:
        run(script(export), workplace)
    assert {path.name for path in (workplace / "onnx").iterdir()} == {
        "encoder-student.onnx",
        "decoder_joint-student.onnx",
    }


@pytest.mark.slow
def test_a_teacher_trained_alone_teaches_a_static_student_from_the_command_line(workplace):
    data = workplace / "static_data"
    run(script(["python", "scripts/prepare_data.py", "fsdd", "--fsdd-dir", "FSDD", "--output-dir", str(data)]
               + ["--train-utterances", "12"]), workplace)  # fmt: skip
    common = [
        f"model.train_ds.manifest_filepath={data / 'train.json'}",
        f"model.validation_ds.manifest_filepath={data / 'dev.json'}",
        f"model.tokenizer.dir={data / 'tokenizer'}",
        f"exp_manager.exp_dir={workplace / 'static'}",
        *SHORT,
    ]
    train = script(["python", "scripts/train.py", "--config-name=fsdd"])
    run([*train, "strategy=teacher", "exp_manager.name=teacher", *common], workplace)
    (teacher,) = workplace.glob("static/teacher/*/teacher.nemo")
    static = ["strategy=static", "exp_manager.name=static", f"model.codert.teacher_checkpoint={teacher}"]
    run([*train, *static, *common], workplace)
    assert len(list(workplace.glob("static/static/*/teacher_report.json"))) == 1
    assert len(list(workplace.glob("static/static/*/student.nemo"))) == 1


def test_python_of_the_readme_is_valid_and_names_what_exists():
    import nemo_codert.models

    blocks = python_blocks(README)
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "README.md", "exec")
    assert all(hasattr(nemo_codert.models, name) for name in re.findall(r"nemo_codert\.models import (\w+)", README))


def test_files_and_make_targets_named_in_the_readme_exist():
    names = set(re.findall(r"`((?:nemo_codert|scripts|conf|docs|tests)/[\w./]+?)`", README))
    names |= set(re.findall(r"\]\((docs/[\w./]+)\)", README))
    assert len(names) >= 6
    missing = [name for name in names if not (REPOSITORY / name).exists()]
    assert not missing, missing
    targets = {words[1] for words in shell_commands(README) if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
