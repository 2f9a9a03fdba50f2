"""Config names as a command line gives them: found as Hydra finds them, and what is not there is named at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_codert.cli.composition import composed
from nemo_codert.config.search import check_names, config_search, with_additions
from nemo_codert.config.shipped import conf_folder, shipped_configs
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

PAIR = "defaults:\n  - fsdd\n  - _self_\nname: mine\nmodel:\n  student:\n    encoder: {d_model: 32}\n"


@pytest.fixture
def own(tmp_path) -> Path:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    (folder / "pair.yaml").write_text(PAIR)
    return folder


@pytest.mark.nemo
def test_a_folder_of_the_users_inherits_and_takes_strategies(own):
    search = config_search(["--config-dir", str(own), "--config-name=pair", "strategy=static", "seed=3"])
    check_names(search)
    cfg = composed(search)
    assert (cfg.name, cfg.seed, cfg.model.codert.teacher, cfg.model.student.encoder.d_model) == (
        "mine",
        3,
        "frozen",
        32,
    )
    assert cfg.trainer.max_steps == 2000


@pytest.mark.nemo
@pytest.mark.parametrize("option", ["--config-dir", "-cd", "--config-path"])
def test_a_copy_of_a_shipped_config_comes_before_the_shipped_one(own, option):
    (own / "fsdd.yaml").write_text((conf_folder() / "fsdd.yaml").read_text() + "seed: 77\n")
    assert composed(config_search([option, str(own), "--config-name", "fsdd"])).seed == 77


def test_the_arguments_for_hydra_stay_what_they_are_when_they_come_again(own):
    # Lightning starts the other processes of a run with the arguments of the first.
    first = config_search(["--config-dir", str(own), "--config-name", "pair", "--cfg", "job", "seed=1"])
    again = config_search(first.hydra_arguments())
    assert again.hydra_arguments() == first.hydra_arguments()
    assert again.places == first.places
    assert "--cfg job" in " ".join(first.hydra_arguments())


def test_without_a_folder_the_shipped_one_is_searched():
    search = config_search(["seed=1"])
    assert search.places == (conf_folder(),)
    assert search.hydra_arguments() == ["--config-path", str(conf_folder()), "--config-name", "fsdd", "seed=1"]


@pytest.mark.parametrize("name", [name for name in shipped_configs() if "/" not in name])
@pytest.mark.parametrize("strategy", ["static", "student"])
def test_every_shipped_config_is_found_complete(name, strategy):
    choice = [] if name == "base" else [f"strategy={strategy}"]
    check_names(config_search(["--config-name", name, *choice, "model.optim.lr=1", "+trainer.x.y=2", "trainer.x.y=3"]))


@pytest.mark.nemo
def test_folders_that_a_config_names_itself_are_searched(own, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "parent.yaml").write_text("defaults: [fsdd, _self_]\n")
    (own / "child.yaml").write_text(
        f"defaults: [parent, _self_]\nhydra:\n  searchpath: ['file://{tmp_path}/more']\nseed: 5\n"
    )
    search = config_search(["--config-dir", str(own), "--config-name", "child"])
    check_names(search)
    assert composed(search).seed == 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config-name", "fssd"],
            "no config 'fssd': did you mean 'fsdd'\\? There are fsdd, .*quickstart.* \\(looked in .*/conf\\)",
        ),
        (
            ["--config-name=fsdd", "strategy=statik"],
            "no strategy 'statik': did you mean 'static'\\? There are .*tandem_kd.* \\(",
        ),
        (
            ["model.codert.distilation.weight=1"],
            "no key 'model.codert.distilation.weight' .*: did you mean 'model.codert.distillation",
        ),
        (["trainer.max_step=3"], "no key 'trainer.max_step' in config 'fsdd': did you mean 'trainer.max_steps'"),
        (["sede=3"], "did you mean 'seed'\\? Write \\+ before a key that is to be added"),
        (["--config-name=base", "strategy=static"], "neither .*base.yaml nor what it inherits from has strategy"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        check_names(config_search(arguments))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_gets_the_nearest(own):
    with pytest.raises(ValueError, match="--config-dir is .*its mine': no such folder, did you mean \"it's mine\""):
        config_search(["--config-dir", str(own.parent / "its mine")])


def test_a_parent_that_is_not_there_is_named_with_the_folders(own):
    (own / "pair.yaml").write_text(PAIR.replace("- fsdd", "- fsdt"))
    with pytest.raises(ValueError) as error:
        check_names(config_search(["--config-dir", str(own), "--config-name", "pair"]))
    assert str(error.value) == (
        f"{own}/pair.yaml inherits from 'fsdt', which is not there: did you mean 'fsdd'? "
        f"(looked in {own} and {conf_folder()})"
    )
    (own / "pair.yaml").write_text("defaults: [base, _self_, {strategy: sttic}]\n")
    with pytest.raises(ValueError, match="inherits from 'strategy/sttic', .*: did you mean 'static'"):
        check_names(config_search(["--config-dir", str(own), "--config-name", "pair"]))


@pytest.mark.parametrize("text", ["a: [1", "- a", "a: ${b"])
def test_a_file_that_is_no_config_is_named(own, text):
    (own / "pair.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"pair\.yaml (cannot be read as YAML|holds a list)"):
        check_names(config_search(["--config-dir", str(own), "--config-name", "pair"]))


def test_what_the_files_do_not_say_is_left_to_hydra(own):
    # A package of its own, a value that is no block, a choice that is computed.
    (own / "pair.yaml").write_text("defaults: [base, {strategy@model.other: static}, _self_]\n")
    check_names(config_search(["--config-dir", str(own), "--config-name", "pair", "model.other.train=pair"]))
    check_names(config_search(["model.student.decoder.prednet=1", "model.optim.betas.0=0.8", "hydra.verbose=true"]))


def test_a_key_below_a_block_that_base_leaves_open_has_a_nearest_name():
    search = config_search(["--config-name", "quickstart", "model.student.encoder.n_layer=2"])
    with pytest.raises(
        ValueError, match="no key 'model.student.encoder.n_layer'.*did you mean 'model.student.encoder.n_l"
    ):
        check_names(search)


# ---- keys that a config of the user's lacks ------------------------------------------------------------------------

STOCK = """
name: stock
model: {sample_rate: 16000, encoder: {d_model: 8}, train_ds: {manifest_filepath: train.json}}
trainer: {max_steps: 100}
exp_manager: {exp_dir: null, name: stock}
"""


@pytest.fixture
def stock(tmp_path) -> list[str]:
    (tmp_path / "stock.yaml").write_text(STOCK)
    return ["--config-dir", str(tmp_path), "--config-name", "stock"]


@pytest.mark.nemo
def test_a_stock_yaml_takes_strategies_and_known_keys_without_a_plus(stock):
    overrides = ["strategy=static", "model.codert.teacher_checkpoint=t.nemo", "model.student.init_from_teacher=true"]
    overrides += ["trainer.limit_train_batches=7", "exp_manager.create_wandb_logger=false", "seed=3"]
    overrides += ["exp_manager.checkpoint_callback_params.save_top_k=2", "model.encoder.d_model=16"]
    search = with_additions(config_search([*stock, *overrides]))
    check_names(search)
    cfg = composed(search)
    assert (cfg.train, cfg.model.codert.teacher, cfg.model.codert.teacher_checkpoint) == ("pair", "frozen", "t.nemo")
    assert cfg.model.codert.distillation.encoder.weight == 0.1 and cfg.model.student.init_from_teacher is True
    assert (cfg.trainer.limit_train_batches, cfg.trainer.max_steps, cfg.seed) == (7, 100, 3)
    assert cfg.exp_manager.checkpoint_callback_params.save_top_k == 2 and cfg.model.encoder.d_model == 16


@pytest.mark.nemo
def test_a_stock_yaml_takes_every_kind_of_key_and_the_options_of_a_run_without_a_strategy(stock):
    overrides = ["model.codert.share_decoder=false", "model.student.encoder.d_model=4", "train=student"]
    overrides += ["trainer.callbacks=[]", "exp_manager.version=first", "resume.every_n_steps=5", "--resume"]
    search = with_additions(config_search([*stock, *overrides]))
    check_names(search)
    cfg = composed(search)
    assert cfg.model.codert == {"share_decoder": False} and cfg.model.student == {"encoder": {"d_model": 4}}
    assert (cfg.train, cfg.trainer.callbacks, cfg.exp_manager.version) == ("student", [], "first")
    assert cfg.resume == {"every_n_steps": 5, "unfinished": "continue"}
    assert composed(with_additions(config_search([*stock, "--new"]))).resume == {"unfinished": "new"}
    with pytest.raises(ValueError, match="no key 'model.student.encoder.d_modle'"):
        check_names(with_additions(config_search([*stock, "model.student.encoder.d_modle=4"])))


def test_additions_stay_what_they_are_when_they_come_again(stock):
    first = with_additions(
        config_search([*stock, "strategy=static", "trainer.limit_train_batches=7", "+a=1", "~name"])
    )
    assert first.overrides == ("+strategy=static", "++trainer.limit_train_batches=7", "+a=1", "~name")
    assert with_additions(config_search(first.hydra_arguments())).hydra_arguments() == first.hydra_arguments()


@pytest.mark.parametrize(
    "override", ["trainer.max_step=3", "model.codert.teacher_checkpont=t", "exp_manager.exp_dri=a", "model.d_model=3"]
)
def test_an_unknown_key_still_gets_the_nearest(override, stock):
    with pytest.raises(ValueError, match="there is no key .* did you mean"):
        check_names(with_additions(config_search([*stock, override])))


@pytest.mark.nemo
def test_the_keys_of_exp_manager_are_those_of_nemo():
    from dataclasses import fields

    from nemo.utils.exp_manager import ExpManagerConfig

    from nemo_codert.config.trainer_keys import MANAGER_KEYS

    assert set(MANAGER_KEYS) == {field.name for field in fields(ExpManagerConfig)}


@pytest.mark.nemo
@pytest.mark.parametrize("strategy", ["tandem_kd", "static_joint"])
def test_all_terms_can_be_replaced_at_once(strategy):
    terms = "{joint: {at: joint, nodes: all, weight: 0.3}}"
    cfg = composed(config_search([f"strategy={strategy}", f"model.codert.distillation={terms}"]))
    assert cfg.model.codert.distillation == {"joint": {"at": "joint", "nodes": "all", "weight": 0.3}}


@pytest.mark.parametrize(
    "overrides, is_refused",
    [
        (["exp_manager.create_wandb_logger=true"], True),
        (["+exp_manager.create_wandb_logger=True"], True),
        (["exp_manager.create_wandb_logger=false"], False),
        ([], False),
    ],
)
def test_a_logger_without_its_package_is_refused_before_nemo_is_imported(overrides, is_refused):
    code = f"""import sys
from nemo_codert.config import search, trainer_keys
trainer_keys.find_spec = lambda name: None if name == "wandb" else sys
sys.origin = "there"
from nemo_codert.cli.train import config_arguments
try:
    config_arguments({overrides})
except ValueError as error:
    print(error)
assert not {{"nemo", "torch"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    # Without a refusal the check goes on to the manifests, which are missing here.
    wanted = "exp_manager.create_wandb_logger is true, but wandb is not installed: pip install wandb\n"
    assert (done.stdout == wanted) if is_refused else ("wandb" not in done.stdout)
