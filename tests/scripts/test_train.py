"""scripts/train.py: exit codes, messages and the options that say where configs are. The run is in tests/training."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.training.run_configs import SMALL

CONF = REPOSITORY / "conf"


@pytest.fixture
def train(preloaded_python, manifest, tokenizer_dir, tmp_path):
    """Starts the script in another folder than the checkout: exit status, standard output, standard error."""
    dev = tmp_path / "dev.json"
    dev.write_text(manifest.read_text())

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        command = [preloaded_python, str(REPOSITORY / "scripts" / "train.py"), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    data = [f"model.train_ds.manifest_filepath={manifest}", f"model.validation_ds.manifest_filepath={dev}"]
    call.run = [*data, f"model.tokenizer.dir={tokenizer_dir}", "exp_manager.exp_dir=runs", *SMALL]
    call.run += ["model.preprocessor.window_stride=0.01"]
    return call


def own_config(folder: Path, name: str, parent: str) -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["defaults:", f"  - {parent}", "  - _self_", "  - override strategy: tandem_kd", "name: mine"]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_config_of_ones_own_that_inherits_from_a_shipped_one_is_trained(train, tmp_path):
    folder = own_config(tmp_path / "my pair", "pair", "fsdd")
    short = ["trainer.max_steps=3", "trainer.val_check_interval=3", "model.train_ds.batch_size=4"]
    status, _, err = train(
        "--config-dir", folder.name, "--config-name", "pair", "strategy=student", *train.run, *short
    )
    assert status == 0, err
    (run_folder,) = (tmp_path / "runs" / "mine").glob("2*")
    assert {"lone_student.nemo", "student.nemo", "student.md"} <= {path.name for path in run_folder.iterdir()}
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["train"] == "student"


def test_where_configs_are_looked_for(train, tmp_path):
    own_config(tmp_path / "mine", "pair", "fsdd")
    shipped = yaml.safe_load((CONF / "fsdd.yaml").read_text())["model"]["model_defaults"]
    for options in (
        ["--config-dir", "mine", "--config-name", "pair"],
        ["--config-path", CONF, "--config-name", "fsdd"],
        [
            "--config-dir",
            "mine",
            "--config-name",
            "fsdd",
            "hydra/job_logging=disabled",
        ],  # only the folder is the user's
        ["--config-path", "../conf"],  # relative to scripts/
        [],
    ):
        status, out, err = train(*options, "--cfg", "job")
        assert status == 0, err
        assert yaml.safe_load(out)["model"]["model_defaults"] == shipped


def test_a_config_that_is_not_there_is_one_sentence_that_says_where_it_was_looked_for(train, tmp_path):
    own_config(tmp_path / "mine", "pair", "fsd")
    strategies = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
    names = sorted({"pair", *(path.stem for path in CONF.glob("*.yaml"))} - {"base"})
    places = f"(looked in {tmp_path / 'mine'} and {CONF})"
    for arguments, message in (
        (
            ["--config-dir", "mine", "--config-name", "pair"],
            f"{tmp_path / 'mine' / 'pair.yaml'} inherits from 'fsd', which is not there: "
            f"did you mean 'fsdd'? {places}",
        ),
        (
            ["--config-dir", "mine", "--config-name", "pari"],
            f"there is no config 'pari': did you mean 'pair'? There are {', '.join(names)} {places}",
        ),
        (
            ["strategy=stati"],
            f"there is no strategy 'stati': did you mean 'static'? There are {', '.join(strategies)} "
            f"(looked in {CONF})",
        ),
    ):
        status, _, err = train(*arguments)
        assert status == 1 and err.strip().splitlines()[-1] == f"error: {message}"
        assert "Traceback" not in err


def test_a_fault_that_only_building_finds_is_one_message_and_exit_status_1_after_the_warnings(train):
    status, _, err = train(*train.run, "+model.encoder.n_layerz=3", "strategy=tandem_kd")
    assert status == 1 and "error: " in err and "n_layerz" in err
    assert "Traceback" not in err
    before = err.partition("error: ")[0]
    assert before.count("model.codert.distillation.encoder compares encoder logits of two decoders of their own") == 1


def test_a_path_that_the_system_refuses_is_one_message_that_names_it(train):
    status, _, err = train(*train.run, "exp_manager.exp_dir=/proc/nope")
    assert status == 1 and "error: /proc/nope: No such file or directory. Give a path" in err
    assert "Traceback" not in err


def test_help_is_there_at_once_with_an_example(train):
    status, out, _ = train("--help")
    assert status == 0 and "--config-name=fsdd strategy=shared_kd" in out and "--config-dir" in out
