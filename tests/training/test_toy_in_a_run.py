"""The toy criterion of tests/criteria in a whole run from a YAML file: checks, logs, guard, record, curves."""

import pytest
import torch

from nemo_codert.cli.composition import composed
from nemo_codert.compare.plan import _check_overrides
from nemo_codert.config.criteria import CRITERIA, CriterionKind
from nemo_codert.config.search import check_names, config_search
from nemo_codert.evaluation.learning_curves import panels, plot_curves, read_curves
from nemo_codert.training.run import train
from nemo_codert.training.run_checks import check_run
from tests.criteria.test_toy_criterion import Likeness, LikenessConfig, likeness_problems
from tests.training.run_configs import SMALL

SHORT = ["trainer.max_steps=3", "trainer.val_check_interval=3", "model.train_ds.batch_size=4"]
SHORT += ["trainer.log_every_n_steps=1", "strategy=tandem_kd"]


class Broken(Likeness):
    """Not a number from the second step on."""

    calls = 0

    def forward(self, student, teacher, batch):
        Broken.calls += 1
        return super().forward(student, teacher, batch) * (float("nan") if Broken.calls > 1 else 1.0)


# In a user's folder, as in docs/configuration.md: a term beside that of the strategy.
FILES = {
    "toy.yaml": "defaults: [fsdd, _self_]\nmodel:\n  codert:\n    distillation:\n"
    "      likeness: {at: hidden, by: likeness, weight: 0.5, power: 2.0}\n",
}


@pytest.fixture
def yaml_config(run_config, manifest, tokenizer_dir, tmp_path, monkeypatch):
    """Composes the YAML file in a user's folder that inherits from a shipped config and names the terms."""
    monkeypatch.setitem(CRITERIA, "hidden.likeness", CriterionKind(Likeness, LikenessConfig, likeness_problems))
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (tmp_path / "dev.json").write_text(manifest.read_text())
    data = [f"model.train_ds.manifest_filepath={manifest}", f"model.tokenizer.dir={tokenizer_dir}"]
    data += [
        f"model.validation_ds.manifest_filepath={tmp_path / 'dev.json'}",
        f"exp_manager.exp_dir={tmp_path / 'runs'}",
    ]
    data += ["model.preprocessor.window_stride=0.01"]

    def make(*overrides: str):
        options = ["--config-dir", str(folder), "--config-name", "toy", *SMALL, *SHORT, *data, *overrides]
        search = config_search(options)
        check_names(search)
        return composed(search)

    return make


def test_a_run_from_a_yaml_checks_trains_logs_records_and_plots_it(yaml_config, tmp_path):
    cfg = yaml_config("exp_manager.checkpoint_callback_params.monitor=train_distillation_loss_likeness")
    run = train(cfg)
    assert run.trainer.global_step == 3
    curves = read_curves(run.folder)
    for name in ("train_distillation_loss", "train_distillation_loss_likeness"):
        assert [step for step, _ in curves[name]] == [0, 1, 2]
    assert {value for _, value in curves["train_distillation_weight_likeness"]} == {0.5}
    assert panels(curves)[-1] == (
        "Distillation", {"train_distillation_loss": "encoder", "train_distillation_loss_likeness": "likeness"},
    )  # fmt: skip
    assert plot_curves(curves, tmp_path / "curves.png").stat().st_size > 10_000
    assert run.model.cfg.nemo_codert_training.strategy == "tandem_kd by encoder, likeness"
    assert {"pair.nemo", "student.nemo", "student.md"} <= {path.name for path in run.folder.iterdir()}


def test_a_monitor_that_no_term_logs_is_refused_with_the_names_of_all_terms(yaml_config):
    cfg = yaml_config("exp_manager.checkpoint_callback_params.monitor=train_distillation_loss_hidden")
    with pytest.raises(
        ValueError, match="wanted one of .*train_distillation_loss_likeness, train_distillation_weight"
    ):
        check_run(cfg)


def test_the_guard_names_it_and_the_branch_that_it_trains(yaml_config, monkeypatch):
    monkeypatch.setitem(CRITERIA, "hidden.likeness", CriterionKind(Broken, LikenessConfig))
    monkeypatch.setattr(Broken, "calls", 0)
    with pytest.raises(FloatingPointError, match=r"train_distillation_loss_likeness = nan \(student\)") as stopped:
        train(yaml_config())
    assert "criteria.likeness (student) 2 of 2 tensors" in str(stopped.value)


def test_a_branch_alone_has_no_terms(yaml_config):
    cfg = yaml_config("strategy=student")
    with pytest.raises(ValueError, match="distillation.likeness.weight is 0.5 but train is student: there is no pair"):
        check_run(cfg)


def test_a_comparison_refuses_one_weight_for_all_strategies():
    with pytest.raises(ValueError, match="would undo what makes the strategies differ"):
        _check_overrides(["model.codert.distillation.likeness.weight=0"], {})


def test_the_sum_of_the_loss_is_that_of_the_weighted_terms(yaml_config):
    run = train(yaml_config())
    parts = run.model.step_losses
    expected = parts["train_rnnt_loss_student"] + parts["train_rnnt_loss_teacher"]
    expected = expected + 0.1 * parts["train_distillation_loss"] + 0.5 * parts["train_distillation_loss_likeness"]
    torch.testing.assert_close(parts["train_loss"], expected)
