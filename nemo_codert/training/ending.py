"""The text at the end of a run: its files and the next command. Imports neither PyTorch nor NeMo."""

import os
import shlex
from pathlib import Path

from omegaconf import DictConfig

from nemo_codert.config.data_sections import manifest_paths
from nemo_codert.config.values import value_at
from nemo_codert.training.early_checks import test_manifests
from nemo_codert.training.run_folders import FINISHED

# The model as it was trained, additive joint included. `student.nemo` is the stock student beside it.
TRAINED_FILES = {"pair": "pair.nemo", "student": "lone_student.nemo", "teacher": "teacher.nemo"}
OTHER_FILES = ("student.nemo", "student.md", "teacher_report.json", "data_report.json", FINISHED)


def ending(cfg: DictConfig, folder: Path, checkpoint: str, best: str) -> str:
    """Return the files of a finished run and the command that comes next.

    Args:
        cfg: root config of the run.
        folder: of the run, with its files.
        checkpoint: path of the best one, empty where there is none.
        best: its score with the name of the metric.
    """
    names = dict.fromkeys((TRAINED_FILES[cfg.train], *OTHER_FILES))
    paths = [Path(checkpoint)] if checkpoint else []
    paths += [folder / name for name in names] + sorted((folder / "predictions").glob("*/*.json"))
    files = [os.path.relpath(path, folder) for path in paths if path.is_file()]
    if cfg.train == "teacher":
        following = ["codert", "new", "--teacher", str(folder / TRAINED_FILES["teacher"]), "--output", "my_pair"]
    else:
        given = value_at(cfg, "model.validation_ds.manifest_filepath")
        manifests = [*test_manifests(cfg), *(manifest_paths(given) if given else ()), "MANIFEST.json"]
        following = ["codert", "evaluate", "--model", str(folder / "student.nemo"), "--manifest", manifests[0]]
    return "\n".join(
        [f"{best}. Files in {folder}:", *(f"  {file}" for file in files), f"Next: {shlex.join(following)}"]
    )
