"""The strategy of every system of docs/methods.md: its terms in the small configs, and the pair that it makes."""

import logging
import re

import pytest
from omegaconf import open_dict

from nemo_codert.config.checked import checked_config
from nemo_codert.config.search import config_search
from tests.config.test_conf_files import CONF, METHODS, model_section
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")

# System, as a title of docs/methods.md has it: its strategies.
SYSTEMS = {
    "Encoder logits with a prior": ["static_prior", "shared_kd_prior"],
    "Full lattice": ["static_joint", "shared_joint"],
    "Occupied nodes": ["static_occupied", "shared_occupied"],
    "One-best path": ["one_best"],
    "Collapsed lattice": ["collapsed"],
    "Adaptive two-stage": ["two_stage"],
    "Noise robust by correlation": ["noise_robust"],
    "Feature measures": ["features"],
    "Inter-KD": ["inter_kd"],
    "Ensemble of teachers": ["cached"],
    "Target speaker": ["target_speaker"],
    "Mean teacher": ["ema"],
    "Two views": ["two_views"],
}
# Strategy: its terms of the loss in their order; a frozen or cached teacher has none of its own.
FROZEN, CO_TRAINED = ("rnnt_student",), ("rnnt_student", "rnnt_teacher")
LOSSES = {
    "static_prior": (*FROZEN, "encoder"),
    "shared_kd_prior": (*CO_TRAINED, "encoder"),
    "static_joint": (*FROZEN, "joint"),
    "shared_joint": (*CO_TRAINED, "joint"),
    "static_occupied": (*FROZEN, "joint"),
    "shared_occupied": (*CO_TRAINED, "joint"),
    "one_best": (*FROZEN, "joint"),
    "collapsed": (*FROZEN, "joint"),
    "two_stage": (*FROZEN, "hidden", "output"),
    "noise_robust": (*FROZEN, "cross"),
    "features": (*FROZEN, "energy", "gram"),
    "inter_kd": ("rnnt_student", "ctc_student", "last", "middle", "middle_heads"),
    "cached": (*FROZEN, "encoder"),
    "target_speaker": (*FROZEN, "joint"),
    "ema": (*FROZEN, "views"),
    "two_views": (*FROZEN, "views"),
}
# What a strategy leaves to the user.
OPEN = {
    "noise_robust": ["model.codert.student_hears.noise={manifest}"],
    "cached": ["model.codert.teacher_cache={targets}"],
    "target_speaker": ["model.codert.teacher_cache={targets}", "model.codert.teacher_checkpoint={teacher}"],
}
CASES = [(strategy, name) for strategy in LOSSES for name in ("fsdd", "quickstart")]


@pytest.fixture(scope="module")
def section(tokenizer_dir, manifest):
    """Factory of the model section of a config with a strategy, what the strategy leaves open being given."""

    def make(strategy: str, name: str, *overrides: str, targets: str = "absent", teacher: str = "absent.nemo"):
        given = [text.format(manifest=manifest, targets=targets, teacher=teacher) for text in OPEN.get(strategy, ())]
        words = [f"strategy={strategy}", *given, *overrides]
        return model_section(name, tokenizer_dir, *config_search(words).overrides)

    return make


def test_every_system_has_a_strategy_and_every_strategy_a_system():
    assert sorted(name for names in SYSTEMS.values() for name in names) == sorted(LOSSES)
    assert sorted(LOSSES) == sorted([*METHODS, "ema", "two_views"])


def section_of(title: str) -> str:
    """The text of docs/methods.md below a title."""
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/methods.md has no section {title!r}"
    return found[1]


@pytest.mark.parametrize("title", SYSTEMS)
def test_the_page_shows_every_strategy_as_its_file_has_it(title):
    shown = dict(re.findall(r"^```yaml\n# conf/strategy/(\w+)\.yaml\n(.*?)^```$", section_of(title), re.M | re.S))
    files = {name: (CONF / "strategy" / f"{name}.yaml").read_text() for name in SYSTEMS[title]}
    assert shown == {name: text.split("\n", 2)[2] for name, text in files.items()}  # below package and comment


@pytest.mark.parametrize("title", [*SYSTEMS, "Pseudo-labels"])
def test_a_section_names_its_source_its_use_and_what_it_gave(title):
    text = section_of(title)
    assert re.search(r"[Ss]ources?:\s", text) and re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert "\nWhen: " in text and "\nWhat it cost and gave here: " in text


def test_the_table_leads_to_every_section():
    rows = re.findall(r"^\| .* \| (`.*`).* \| \[(.*)\]\(#(.*)\) \|$", TEXT, re.MULTILINE)
    named = {title: re.findall(r"`(\w+)`", strategies) for strategies, title, _ in rows}
    assert named == {**SYSTEMS, "Pseudo-labels": ["student"]}
    assert all(anchor == title.lower().replace(" ", "-") for _, title, anchor in rows)


@pytest.mark.parametrize("strategy, name", CASES)
def test_a_strategy_has_its_own_terms_and_no_others_and_no_key_without_effect(strategy, name, section, caplog):
    with caplog.at_level(logging.WARNING):
        checked = checked_config(section(strategy, name))
    assert tuple(spec.name for spec in checked.criteria) == LOSSES[strategy]
    assert caplog.messages == []


@pytest.mark.parametrize("strategy", OPEN)
def test_what_a_strategy_leaves_open_is_asked_for(strategy, tokenizer_dir):
    cfg = model_section("fsdd", tokenizer_dir, f"strategy={strategy}")
    key = OPEN[strategy][0].partition("=")[0].rpartition(".")[2]
    with pytest.raises(ValueError, match=f"(?s)The model config cannot be used:.*{key}"):
        checked_config(cfg)


def test_layers_given_on_the_command_line_replace_those_of_the_file(section):
    chosen = "model.codert.distillation.hidden.layers={1:2}"
    assert section("two_stage", "fsdd", chosen).codert.distillation.hidden.layers == {1: 2}


def test_one_key_moves_the_boundary_of_the_two_stages(section):
    checked = checked_config(section("two_stage", "fsdd", "model.codert.distillation.hidden.until_step=70"))
    starts = {spec.name: (spec.from_step, spec.until_step) for spec in checked.criteria}
    assert starts == {"rnnt_student": (70, None), "hidden": (0, 70), "output": (70, None)}


SMALLER = [f"model.{name}.{key}" for name in ("encoder", "student.encoder") for key in ("d_model=16", "n_heads=2")]
SMALLER += [f"model.{name}.dropout=0" for name in ("encoder", "student.encoder")]
SMALLER += ["model.model_defaults.enc_hidden=16", "model.model_defaults.pred_hidden=16"]


@pytest.fixture(scope="module")
def stored(section, manifest, tmp_path_factory):
    """Factory of what a cached strategy is given: a teacher's file and its targets."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets
    from nemo_codert.models import teacher_config

    folder = tmp_path_factory.mktemp("stored")
    teacher = str(folder / "teacher.nemo")
    EncDecRNNTBPEModel(teacher_config(section("static", "fsdd", *SMALLER))).save_to(teacher)

    def make(**settings: str) -> dict[str, str]:
        targets = str(folder / settings["keep"].partition("=")[0])
        cache_targets(CacheSettings((teacher,), manifest, targets, progress=False, **settings))
        return {"targets": targets, "teacher": teacher}

    return make


KEPT = {"cached": {"keep": "top_k=8", "prior": "mean_prediction"}, "target_speaker": {"keep": "encoder"}}
LOADER = {"sample_rate": 16000, "batch_size": 4, "shuffle": False, "num_workers": 0, "pin_memory": False}


@pytest.mark.nemo
@pytest.mark.parametrize("strategy", LOSSES)
def test_a_strategy_builds_a_pair_whose_loss_trains_every_layer_of_its_student(strategy, section, manifest, request):
    from nemo_codert.models import EncDecCoDERTBPEModel
    from nemo_codert.modules.transducer import Batch

    given = request.getfixturevalue("stored")(**KEPT[strategy]) if strategy in KEPT else {}
    cfg = section(strategy, "fsdd", *SMALLER, **given)
    with open_dict(cfg):
        cfg.train_ds = {"manifest_filepath": str(manifest), **LOADER}
    model = EncDecCoDERTBPEModel(cfg).train()
    batch = Batch.of(next(iter(model.train_dataloader())))
    for step in (0, 500) if strategy == "two_stage" else (0,):
        features, heard = model.branch_features(batch, step, 0)
        of_student, of_teacher = model.criteria.layers(step)
        student = model.student_transducer.run(*heard, batch.transcript, batch.transcript_len, layers=of_student)
        losses = model.codert_losses(student, model.teacher.output(*features, batch, student, of_teacher), batch, step)
        assert {term.spec.log_name for term in model.criteria.active(step)} < losses.keys()
        assert all(value.isfinite() for value in losses.values())
        losses["train_loss"].backward()
        idle = [name for name, value in model.student_encoder.named_parameters() if not value.grad.any()]
        assert idle == []
        model.zero_grad()


@pytest.mark.parametrize(
    "override, terms",
    [
        ("late={at: joint, weight: 0.05}", {"encoder": {"weight": 0.1}, "late": {"at": "joint", "weight": 0.05}}),
        ("encoder={at: joint}", {"encoder": {"at": "joint"}}),
        ("encoder=null", {"encoder": None}),
    ],
)
def test_a_term_is_added_replaced_and_taken_away_on_the_command_line(override, terms, tokenizer_dir):
    words = ["strategy=static", f"model.codert.distillation.{override}"]
    assert model_section("fsdd", tokenizer_dir, *config_search(words).overrides).codert.distillation == terms
