"""NeMo's transducer recipes with the two blocks of a pair: each trains, or is refused by one message."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import DictConfig, OmegaConf

from nemo_codert.cli.composition import composed
from nemo_codert.config.search import check_names, config_search, with_additions
from nemo_codert.training.early_checks import early_problems, with_run_defaults
from nemo_codert.training.run import Run, checked_run, train
from nemo_codert.training.trainer import make_trainer
from tests.conftest import REPOSITORY
from tests.models.teacher_files import NO_DATA
from tests.recipes.recipes import NAME, RECIPES, recipe, with_pair, written

REFUSED = ("conformer_multiblank_transducer_bpe",)
TRAINED = [name for name in RECIPES if name not in REFUSED]
TDT = [name for name in TRAINED if "tdt" in name]
RNNT, HYBRID, CONVOLUTIONS = (
    *("fast-conformer_transducer_bpe", "fastconformer_hybrid_transducer_ctc_bpe", "contextnet_rnnt"),
)
DURATIONS = "${model.model_defaults.tdt_durations}"
# What a command line has to change of a recipe to try it on a CPU.
ON_A_CPU = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2", "trainer.enable_progress_bar=false"]


@pytest.fixture
def data(corpus, tokenizer_dir) -> list[str]:
    """The overrides without which no recipe runs: the paths and, of one recipe, the type of the tokenizer."""
    paths = {"model.train_ds.manifest_filepath": corpus / "train.json", "model.tokenizer.dir": tokenizer_dir}
    paths |= {"model.validation_ds.manifest_filepath": corpus / "dev.json", "model.tokenizer.type": "bpe"}
    return [f"{key}={value}" for key, value in paths.items()]


@pytest.fixture
def command(data, tmp_path, monkeypatch):
    """The config that `codert train` makes of a recipe's YAML, after the checks that come first."""
    monkeypatch.chdir(tmp_path)

    def make(cfg: DictConfig, *overrides: str) -> DictConfig:
        options = ["--config-dir", str(written(cfg, tmp_path / "mine")), "--config-name", NAME]
        search = with_additions(config_search([*options, *data, *overrides]))
        check_names(search)
        return composed(search)

    return make


@pytest.fixture
def trained(command, corpus):
    """Trains a recipe, and transcribes with the student as stock NeMo restores it."""

    def call(cfg: DictConfig, *overrides: str) -> tuple[Run, EncDecRNNTBPEModel]:
        root = command(cfg, *ON_A_CPU, *overrides)
        assert early_problems(with_run_defaults(root)) == []
        run = train(root)
        assert run.trainer.global_step == 2
        student = ASRModel.restore_from(str(run.folder / "student.nemo"), map_location="cpu")
        (text,) = student.transcribe([str(corpus / "0.wav")], verbose=False)
        assert isinstance(text.text, str) and not {"student", "codert"} & student.cfg.keys()
        return run, student

    return call


@pytest.fixture
def teacher_file(tokenizer_dir, tmp_path):
    """The file of a model that NeMo's own class makes of a recipe."""

    def save(name: str) -> Path:
        root = recipe(name)
        root.model.tokenizer.update({"dir": str(tokenizer_dir), "type": "bpe"})
        root.model.pop("ipl", None)  # its paths are mandatory in NeMo too
        if beam := OmegaConf.select(root, "model.aux_ctc.decoding.beam"):
            beam.kenlm_path = None  # which NeMo 3.0.0 reads and its recipe lacks
        cfg = OmegaConf.create(OmegaConf.to_container(root, resolve=True)).model
        for section in ("train_ds", "test_ds"):
            del cfg[section]
        cfg.validation_ds = NO_DATA
        torch.manual_seed(7)
        (EncDecHybridRNNTCTCBPEModel if "aux_ctc" in cfg else EncDecRNNTBPEModel)(cfg).save_to(
            str(tmp_path / "teacher.nemo")
        )
        return tmp_path / "teacher.nemo"

    return save


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_a_teacher_with_its_student(name, trained):
    run, student = trained(with_pair(recipe(name)), "strategy=shared_kd")
    assert type(student) is EncDecRNNTBPEModel and not student.joint.num_extra_outputs
    assert run.folder.parents[1].absolute() == Path.cwd() / "nemo_experiments"  # NeMo's, where exp_dir is null
    assert (run.folder / "pair.nemo").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TDT if "ctc" not in name])
def test_a_recipe_of_a_tdt_model_trains_a_tdt_student(name, trained):
    _, student = trained(with_pair(recipe(name), durations=DURATIONS), "strategy=shared_kd")
    assert student.joint.num_extra_outputs == 5 and list(student.cfg.decoding.durations) == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", [HYBRID, "fastconformer_hybrid_tdt_ctc_bpe"])
def test_a_recipe_of_a_hybrid_model_trains_a_hybrid_student(name, trained):
    durations = {"durations": DURATIONS} if name in TDT else {}
    cfg = with_pair(recipe(name), aux_ctc="${model.aux_ctc}", **durations)
    _, student = trained(cfg, "strategy=shared_kd")
    assert type(student) is EncDecHybridRNNTCTCBPEModel and bool(student.joint.num_extra_outputs) is (name in TDT)


@pytest.mark.slow
@pytest.mark.parametrize("name", [RNNT, HYBRID, CONVOLUTIONS, "conformer_tdt_bpe_stateless"])
def test_a_recipe_trains_a_student_of_a_frozen_model_of_that_recipe(name, trained, teacher_file):
    path = teacher_file(name)
    student = {"durations": DURATIONS} if name in TDT else {}
    run, _ = trained(with_pair(recipe(name), **student), "strategy=static", f"model.codert.teacher_checkpoint={path}")
    assert (run.folder / "teacher_report.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [RNNT, "conformer_tdt_bpe"])
def test_a_recipe_trains_its_student_alone(name, trained):
    run, _ = trained(with_pair(recipe(name)), "strategy=student")
    assert type(run.model) is EncDecRNNTBPEModel and (run.folder / "lone_student.nemo").is_file()


def test_a_recipe_of_a_multi_blank_model_is_refused_by_one_message(command):
    (message,) = early_problems(with_run_defaults(command(with_pair(recipe(*REFUSED)))))
    assert message == (
        "model.loss.loss_name is 'multiblank_rnnt', model.decoding.model_type is 'multiblank', "
        "model.decoding.big_blank_durations is [2, 4, 8], model.joint.num_extra_outputs is 3: a multi-blank model can "
        "be neither teacher nor student. For a standard RNN-T of the same networks set model.loss.loss_name to "
        "default, model.decoding.model_type to rnnt, model.decoding.big_blank_durations to null, "
        "model.joint.num_extra_outputs to 0"
    )
    remedy = ["loss.loss_name=default", "joint.num_extra_outputs=0"]
    remedy += ["decoding.model_type=rnnt", "decoding.big_blank_durations=null"]
    root = command(with_pair(recipe(*REFUSED)), *(f"model.{override}" for override in remedy))
    assert early_problems(with_run_defaults(root)) == []


def test_keys_of_earlier_releases_are_read_as_they_were_meant(command, caplog):
    """As NeMo published this recipe for Lightning 1; NeMo 3.0.0 itself refuses these keys."""
    cfg = with_pair(recipe("conformer_transducer_bpe"))
    cfg.trainer.update({"resume_from_checkpoint": None, "progress_bar_refresh_rate": 10, "max_steps": None})
    cfg.trainer.strategy._target_ = "pytorch_lightning.strategies.DDPStrategy"
    root = command(cfg, "trainer.accelerator=cpu", "trainer.devices=1")
    assert early_problems(with_run_defaults(root)) == []
    trainer = make_trainer(*checked_run(root))
    assert isinstance(trainer.strategy, DDPStrategy) and (trainer.max_steps, trainer.max_epochs) == (-1, 500)
    for key in ("progress_bar_refresh_rate", "sync_batchnorm"):
        assert caplog.text.count(f"trainer.{key} has no effect") == 1
    root.trainer.resume_from_checkpoint = "last.ckpt"
    (fault,) = early_problems(with_run_defaults(root))
    assert fault.startswith("trainer.resume_from_checkpoint is 'last.ckpt', wanted null: --resume continues a run")


@pytest.mark.parametrize("name", TRAINED)
def test_no_key_of_a_recipe_is_refused_where_it_trains_on_gpus(name, command):
    others = ["trainer.precision=bf16", "trainer.num_nodes=2", "trainer.devices=2", "trainer.strategy=auto"]
    for overrides in ([], others):
        assert early_problems(with_run_defaults(command(with_pair(recipe(name)), *overrides))) == []


def test_the_documentation_lists_every_recipe():
    section = (REPOSITORY / "docs" / "configuration.md").read_text().split("## NeMo's own recipes\n")[1]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert {row[0].strip("| `"): row[1].split()[0] for row in rows} == {
        name: "refused" if name in REFUSED else "trains" for name in RECIPES
    }
