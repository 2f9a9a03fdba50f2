"""What a finished run prints: the best score with its metric, files, and a command that can be typed as it is."""

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_codert.cli.evaluate import parser as evaluate_parser
from nemo_codert.cli.new import parse_arguments
from nemo_codert.training.ending import TRAINED_FILES, ending

pytestmark = pytest.mark.unit


def ended(folder: Path, train: str, **model: object) -> list[str]:
    cfg = OmegaConf.create({"train": train, "model": model})
    best = folder / "checkpoints" / "best.ckpt"
    for path in (best, folder / TRAINED_FILES[train], folder / "data_report.json", folder / "config.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return ending(cfg, folder, str(best), "Best val_wer 12.34%").splitlines()


@pytest.mark.parametrize("train", ["pair", "student"])
def test_files_that_are_there_are_listed_with_the_command_that_evaluates(train, tmp_path):
    folder = tmp_path / "my runs"
    (folder / "predictions" / "student").mkdir(parents=True)
    (folder / "predictions" / "student" / "test.json").touch()
    first, *files, following = ended(folder, train, validation_ds={"manifest_filepath": "my dev.json"})
    assert first == f"Best val_wer 12.34%. Files in {folder}:"
    names = ["checkpoints/best.ckpt", TRAINED_FILES[train], "data_report.json", "config.yaml"]
    assert [file.strip() for file in files] == [*names, "predictions/student/test.json"]
    program, command, *arguments = shlex.split(following.removeprefix("Next: "))
    assert (program, command) == ("codert", "evaluate")
    options = evaluate_parser().parse_args(arguments)
    assert [Path(path) for path in options.manifest] == [Path("my dev.json")]
    assert [Path(path) for path in options.model] == [folder / "student.nemo"]


def test_the_test_set_comes_before_the_development_set(tmp_path):
    given = {name: {"manifest_filepath": f"{name}.json"} for name in ("validation_ds", "test_ds")}
    assert ended(tmp_path, "pair", **given)[-1].endswith("--manifest test_ds.json")


def test_a_teacher_is_followed_by_a_pair(tmp_path):
    program, command, *arguments = shlex.split(ended(tmp_path, "teacher")[-1].removeprefix("Next: "))
    assert (program, command) == ("codert", "new")
    assert Path(parse_arguments(arguments).teacher) == tmp_path / "teacher.nemo"
