"""The package as a wheel, installed into an empty folder and used outside the checkout.

`make test` runs the first test, `make test-package` all: a pair is made from a small teacher, trained, compared,
evaluated and exported by the installed command.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.models.teacher_files import save_teacher

COMPOSE = """
import sys
from pathlib import Path
import nemo_codert
from nemo_codert.cli.composition import composed
from nemo_codert.config.search import check_names, config_search
search = config_search(["--config-dir", "my_pair", "--config-name", "mine", "strategy=static"])
check_names(search)
cfg = composed(search)
print(cfg.name, cfg.model.codert.teacher, cfg.trainer.max_steps)
print(Path(nemo_codert.__file__).parent.parent)
"""


def test_the_wheel_works_outside_the_checkout(installed):
    assert installed.codert("--help").stdout.startswith("usage: codert SUBCOMMAND")
    listed = installed.codert("configs", "ls").stdout
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        assert path.stem in listed
    installed.codert("configs", "cp", "fsdd", "my_pair/mine.yaml")
    name, place = installed.run("-c", COMPOSE).stdout.splitlines()[-2:]
    assert (name, Path(place)) == ("fsdd frozen 2000", installed.site)
    assert sorted(path.name for path in installed.site.iterdir() if "__pycache__" not in path.name) == [
        *("bin", "nemo_codert", f"{next(installed.site.glob('*.dist-info')).name}"),
    ]
    assert not [*installed.site.rglob("test_*.py")]


# ---- make test-package ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(installed, manifest) -> Path:
    """A folder as `codert prepare` leaves it: train, dev and test manifests, tokenizer."""
    folder = installed.folder / "data"
    folder.mkdir()
    lines = manifest.read_text().splitlines(keepends=True)
    for name, part in {"train": lines, "dev": lines[:4], "test_seen": lines[4:]}.items():
        (folder / f"{name}.json").write_text("".join(part))
    return folder


@pytest.fixture(scope="module")
def teacher(installed, make_config) -> Path:
    path, _ = save_teacher(make_config, installed.folder, "rnnt")
    return Path(path)


STEPS = (
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "trainer.accelerator=cpu",
    "model.train_ds.batch_size=4",
)


@pytest.mark.package
def test_a_pair_is_made_trained_compared_evaluated_and_exported(installed, corpus, teacher, tokenizer_dir):
    made = installed.codert("new", "--teacher", teacher.name, "--output", "my_pair_of_it", "--size", "1/2")
    assert "student" in made.stdout
    data = [f"model.train_ds.manifest_filepath={corpus}/train.json"]
    data += [f"model.validation_ds.manifest_filepath={corpus}/dev.json"]
    chosen = ["--config-dir", "my_pair_of_it", "--config-name", "pair", *data, *STEPS, "exp_manager.exp_dir=runs"]
    ready = installed.codert("check", *chosen).stdout
    assert "strategy  static" in ready and "Ready to train: codert train --config-dir my_pair_of_it" in ready

    installed.codert("train", *chosen)
    (pair,) = installed.folder.glob("runs/pair/2*/pair.nemo")
    student = pair.with_name("student.nemo")
    assert student.is_file()

    shutil.copytree(tokenizer_dir, corpus / "tokenizer")
    installed.codert(
        *("compare", "--config-name", "fsdd", "--data-dir", "data", "--output-dir", "comparison"),
        *("--strategies", "student", "tandem_kd", "--seeds", "0", "--max-steps", "2"),
        *(
            "--",
            "model.preprocessor.window_stride=0.01",
            "trainer.val_check_interval=2",
            "model.train_ds.batch_size=4",
        ),
    )
    table = (installed.folder / "comparison" / "table.md").read_text()
    assert "tandem_kd" in table

    test = corpus / "test_seen.json"
    installed.codert("evaluate", "--model", student, "--manifest", test, "--output", "predictions.json")
    summary = json.loads((installed.folder / "predictions_summary.json").read_text())
    assert "wer" in json.dumps(summary).lower()
    installed.codert("export", "--model", pair, "--output", "exported.nemo")
    # The exported file needs NeMo alone.
    code = "import sys; sys.modules['nemo_codert'] = None\nfrom nemo.collections.asr.models import ASRModel\n"
    code += "print(type(ASRModel.restore_from('exported.nemo', map_location='cpu')).__name__)"
    assert installed.run("-c", code).stdout.splitlines()[-1] == "EncDecRNNTBPEModel"


@pytest.mark.package
@pytest.mark.parametrize("name", ["train", "compare", "evaluate", "export"])
def test_an_installed_subcommand_has_help(name, installed):
    assert f"codert {name} " in installed.codert(name, "--help").stdout
