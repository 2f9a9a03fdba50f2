"""What a comparison is: folds, settings, what later calls may change, cells in order, and the command of each."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from nemo_codert.compare.folds import find_folds
from nemo_codert.compare.plan import (
    OWN_KEYS,
    Cell,
    Settings,
    extended,
    make_settings,
    plan,
    read_settings,
    shell_command,
    target_arguments,
    training_arguments,
)
from nemo_codert.compare.strategies import CHECKPOINT, composed, flat
from nemo_codert.config.checked import checked_config
from nemo_codert.config.search import config_search
from tests.compare.comparison_corpora import write_corpus
from tests.config.test_conf_files import METHODS
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "data")


@pytest.fixture
def make(corpus):
    """Factory of settings of a comparison on `corpus`, or on `data_dir`."""

    def call(data_dir: Path = corpus, folds: list[str] | None = None, **given) -> Settings:
        options = {
            "config_name": "fsdd",
            "overrides": ["model.optim.lr=0.25"],
            "strategy_overrides": {},
            "max_steps": 2000,
            "threads": 1,
            "strategies": ["student", "tandem_kd"],
            "seeds": [0, 1],
            "versions": {"torch": "1"},
        }
        return make_settings(**{**options, **given}, folds=find_folds(data_dir, folds))

    return call


def folded(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write_corpus(tmp_path / "folds" / name)
    return tmp_path / "folds"


# ---- folds ---------------------------------------------------------------------------------------------------------


def test_a_corpus_is_one_fold_and_a_folder_of_corpora_is_several(corpus, tmp_path):
    assert list(find_folds(corpus, None)) == ["all"]
    data = folded(tmp_path, "bob", "ann")
    (data / "notes").mkdir()
    folds = find_folds(data, None)
    assert list(folds) == ["ann", "bob"] and folds["ann"].folder == "ann"
    assert folds["ann"].test_sets == ["test_seen", "test_unseen"]
    assert list(find_folds(data, ["bob"])) == ["bob"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda data: (data / "ann" / "dev.json").unlink(), "dev.json is not a file"),
        (lambda data: (data / "ann" / "train.json").write_text(""), "train.json is empty"),
        (lambda data: (data / "ann" / "tokenizer" / "tokenizer.model").unlink(), "tokenizer.model is missing"),
        (lambda data: [path.unlink() for path in data.glob("ann/test*.json")], "holds no test.json"),
        (lambda data: (data / "ann" / "test_seen.json").unlink(), "fold bob has the test sets test_seen, test_unseen"),
        (lambda data: (data / "ann").rename(data / "a b"), "has the name 'a b'"),
        (lambda data: [path.unlink() for path in data.glob("*/train.json")], "neither it nor a folder in it holds"),
    ],
)
def test_data_that_cannot_be_used_are_named(spoil, message, tmp_path):
    data = folded(tmp_path, "ann", "bob")
    spoil(data)
    with pytest.raises(ValueError, match=message.replace("test.json", r"test\*\.json")):
        find_folds(data, None)


def test_a_fold_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="--folds names 'eve', --data-dir .* holds ann, bob"):
        find_folds(folded(tmp_path, "ann", "bob"), ["ann", "eve"])


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_say_what_each_strategy_changes_and_are_read_as_they_were_written(make, tmp_path):
    settings = make(
        strategies=["student", "tandem_kd", "static"],
        max_steps=400,
        overrides=["model.optim.lr=0.5"],
        strategy_overrides={"tandem_kd": ["model.codert.distillation.weight=0.3"]},
    )
    assert settings.max_steps == settings.config["trainer.max_steps"] == 400
    assert settings.config["model.optim.lr"] == 0.5
    assert settings.strategies == ["teacher", "student", "tandem_kd", "static"]  # the static one brings its teacher
    assert settings.changes["student"] == {}
    assert settings.changes["teacher"] == {"train": "teacher"}
    assert settings.changes["tandem_kd"] == {
        "train": "pair",
        "model.codert.share_decoder": False,
        "model.codert.distillation.encoder.weight": 0.3,
    }
    settings.write(tmp_path)
    assert read_settings(tmp_path) == settings
    assert str(tmp_path) not in (tmp_path / "comparison.json").read_text()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"strategies": ["student", "tandm"]}, "no strategy 'tandm', wanted one of .*tandem_kd"),
        ({"strategies": ["../strategy/student"]}, "no strategy '../strategy/student', wanted one of .*tandem_kd"),
        ({"strategies": ["student", ""]}, "no strategy '', wanted one of"),
        ({"config_name": "absent"}, "config 'absent' cannot be composed"),
        ({"overrides": ["model.optm.lr=1"]}, "cannot be composed for student: .*optm"),
        ({"overrides": ["seed=1"]}, "'seed=1' sets seed, which the comparison gives to every cell itself"),
        ({"overrides": ["++trainer.max_steps=5"]}, "sets trainer.max_steps"),
        ({"overrides": ["exp_manager.exp_dir=x"]}, "sets exp_manager.exp_dir"),
        ({"strategy_overrides": {"tandem_kd": ["strategy=shared"]}}, "sets strategy"),
        ({"overrides": ["model.tokenizer={dir: x, type: bpe}"]}, "sets model.tokenizer.dir"),
        ({"overrides": ["~model.test_ds"]}, "sets model.test_ds.manifest_filepath"),
        ({"overrides": ["model.codert.distillation.weight=0.3"]}, "would undo what makes the strategies differ"),
        ({"overrides": ["model.codert.distillation.frame_shift=2"]}, "would undo what makes the strategies differ"),
        ({"overrides": ["model.codert.distillation.joint.nodes=all"]}, "would undo what makes the strategies differ"),
        ({"overrides": ["model.codert.distillation={weight: 0.3}"]}, "would undo what makes the strategies differ"),
        ({"overrides": ["model.codert.share_decoder=true"]}, "--override STRATEGY:model.codert.share_decoder=true"),
        ({"overrides": ["exp_manager.checkpoint_callback_params.monitor=val_loss"]}, "best dev WER, but .*'val_loss'"),
        ({"overrides": ["exp_manager.create_checkpoint_callback=false"]}, "create_checkpoint_callback False"),
        ({"strategy_overrides": {"tandem_kd": ["model.model_defaults.pred_hidden=256"]}}, "pred_hidden is 256"),
        ({"strategy_overrides": {"tandem_kd": ["model.optim.lr=1"]}}, "model.optim.lr is 1 for tandem_kd"),
        ({"strategy_overrides": {"tandem_kd": ["model.decoding.strategy=beam"]}}, "is 'beam' for tandem_kd"),
        ({"strategy_overrides": {"shared": ["model.optim.lr=1"]}}, "--override is for shared, but --strategies is"),
        (
            {"strategy_overrides": {"tandem_kd": ["model.train_ds.batch_size=4"]}},
            "model.train_ds.batch_size is 4 for tandem_kd but 16 for student",
        ),
        (
            {"strategy_overrides": {"tandem_kd": ["model.student.encoder.n_layers=3"]}},
            "model.student.encoder.n_layers is 3 for tandem_kd",
        ),
        ({"max_steps": 300}, "max_steps is 300 but trainer.val_check_interval 200"),
        ({"overrides": ["trainer.val_check_interval=7"], "max_steps": 20}, "is 20 but trainer.val_check_interval 7"),
        ({"config_name": "base"}, "cannot be composed"),
    ],
)
def test_settings_that_would_not_compare_are_refused(given, message, make):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_a_comparison_without_a_number_of_updates_is_refused(make, monkeypatch):
    monkeypatch.setattr("nemo_codert.compare.plan.composed", lambda *_: {"trainer.max_steps": -1})
    with pytest.raises(ValueError, match="trainer.max_steps is -1: equal updates need a number"):
        make()


def test_a_file_that_holds_no_settings_is_refused(tmp_path):
    assert read_settings(tmp_path) is None
    for text in ("{", "[]", "{}", '{"folds": {}, "seed": 1}', '{"folds": {"a": {"b": 1}}}'):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(ValueError, match="does not hold the settings of a comparison"):
            read_settings(tmp_path)


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"folds": {}}, "folds: wanted one fold or more"),
        ({"seeds": "0"}, "seeds: wanted one whole number or more, each once"),
        ({"seeds": []}, "seeds: wanted one whole number"),
        ({"seeds": [0, True]}, "seeds: wanted one whole number"),
        ({"strategies": []}, "strategies: wanted one name or more, each once"),
        ({"strategies": "student"}, "strategies: wanted one name"),
        ({"strategies": ["student", "student"]}, "strategies: wanted one name"),
        ({"max_steps": "600", "threads": 0}, "threads: wanted a whole number, 1 or more; max_steps: wanted"),
        ({"config": [], "changes": {"student": 1}}, "config: wanted values by name; changes: wanted values by name"),
        ({"strategy_overrides": {"student": "a=1"}, "overrides": "a=1"}, "overrides: wanted a list of texts"),
        ({"versions": None, "config_name": None}, "config_name: wanted a name; versions: wanted texts by name"),
        ({"folds": {"all": {"folder": ".", "test_sets": [], "sha256": {}}}}, "folds.all.test_sets: wanted one name"),
        (
            {"folds": {"all": {"folder": 1, "test_sets": ["a"], "sha256": []}}},
            "folds.all.folder: wanted a name; folds",
        ),
        (
            {"folds": {name: {"folder": name, "test_sets": [name], "sha256": {}} for name in "ab"}},
            "folds.b.test_sets of all folds: wanted the same",
        ),
    ],
)
def test_settings_that_were_spoilt_by_hand_are_refused_by_key(spoil, message, make, tmp_path):
    make().write(tmp_path)
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoil}))
    with pytest.raises(ValueError, match=f"does not hold the settings of a comparison .*{message}.*another folder"):
        read_settings(tmp_path)


# ---- strategies, their twins and teachers --------------------------------------------------------------------------

GIVEN = {
    "noise_robust": ["model.codert.student_hears.noise=noise.json"],
    "inter_kd": ["model.codert.teacher_checkpoint=hybrid.nemo"],
}


@pytest.mark.parametrize("strategy", ["static", "tandem_kd", *METHODS])
def test_every_strategy_that_distils_is_planned_with_its_twin(strategy, make):
    twin, own = f"{strategy}-twin", {strategy: GIVEN[strategy]} if strategy in GIVEN else {}
    settings = make(strategies=[strategy, twin], strategy_overrides=own)
    kinds = {"static", "shared_kd_prior", "shared_joint", "shared_occupied", "tandem_kd", "inter_kd"}
    assert settings.strategies[:-2] == ([] if strategy in kinds - {"static"} else ["teacher"])
    theirs, ours = settings.config_of(strategy), settings.config_of(twin)
    weights = {key for key in theirs if key.startswith("model.codert.distillation.") and key.endswith(".weight")}
    changed = {key for key in ours if theirs.get(key) != ours[key]}
    assert weights and weights <= changed <= {*weights, "model.codert.student_loss_from_step"}
    assert {ours[key] for key in weights} == {0}
    assert all(set(GIVEN.get(strategy, ())) <= set(arguments_of(settings, name)) for name in (strategy, twin))


def arguments_of(settings: Settings, strategy: str) -> list[str]:
    return training_arguments(settings, Cell("all", strategy, 0), "/data", "/out")


@pytest.mark.parametrize("strategy, name", [("two_stage-twin", "two_stage"), ("inter_kd-twin", "inter_kd")])
def test_a_twin_passes_the_checks_of_a_run(strategy, name, make):
    settings = make(strategies=[strategy], strategy_overrides={name: GIVEN.get(name, [])})
    search = config_search(arguments_of(settings, strategy))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose("fsdd", list(search.overrides))
    active = {spec.name for spec in checked_config(cfg.model).criteria if spec.weight > 0}
    heads = {"ctc_student", "middle_heads"} if strategy == "inter_kd-twin" else set()
    assert active == {"rnnt_student", *heads}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"strategies": ["student-twin"]}, "there is no student-twin: student has no distillation"),
        ({"strategies": ["tandem-twin"]}, "there is no tandem-twin: tandem has no distillation"),
        ({"strategies": ["statc-twin"]}, "no strategy 'statc', .*nearest is 'static'"),
        (
            {"strategies": ["inter_kd"]},
            "inter_kd needs a teacher with a CTC head.*--override inter_kd:model.codert.teacher_ch",
        ),
        (
            {"strategies": ["noise_robust"]},
            "student_hears.noise is .* for noise_robust: give it with --override noise",
        ),
        (
            {"strategies": ["static", "ema"], "overrides": [f"{CHECKPOINT}=big.nemo"]},
            f"{CHECKPOINT} is 'big.nemo' for ema, which takes no teacher. .*--override STRATEGY:{CHECKPOINT}=big.nemo",
        ),
        ({"strategy_overrides": {"student": [f"{CHECKPOINT}=big.nemo"]}}, "for student, which takes no teacher"),
        (
            {"strategies": ["two_views-twin"], "strategy_overrides": {"two_views": [f"{CHECKPOINT}=big.nemo"]}},
            "for two_views-twin, which takes no teacher",
        ),
        ({"overrides": ["model.codert.student_hears.noise=a"]}, "none of student tandem_kd has that key. Add it to"),
        (
            {"strategies": ["static-twin"], "strategy_overrides": {"static-twin": ["model.codert.rnnt_loss=nemo"]}},
            "--override is for static-twin: give it to static, the twin takes it too",
        ),
    ],
)
def test_a_strategy_that_cannot_be_trained_is_refused_with_what_it_needs(given, message, make):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_an_override_for_some_reaches_the_strategies_with_its_key_alone(make):
    own = "model.codert.student_hears"
    given = [f"{own}.noise=n.json", f"{own}.spec_augment.freq_masks=4"]
    settings = make(strategies=["noise_robust", "two_views", "student"], overrides=given)
    takes = {name: [text for text in arguments_of(settings, name) if own in text] for name in settings.strategies}
    assert takes == {"teacher": [], "noise_robust": given[:1], "two_views": given[1:], "student": []}
    assert settings.config_of("noise_robust")[f"{own}.noise"] == "n.json"
    assert settings.config_of("two_views")[f"{own}.spec_augment.freq_masks"] == 4
    with pytest.raises(ValueError, match=f"none of two_views has that key.*--override STRATEGY:.{own}.noise=n.json"):
        make(strategies=["two_views"], overrides=given[:1])
    both = make(strategies=["two_views"], strategy_overrides={"two_views": [f"+{given[0]}"]})
    assert both.config_of("two_views")[f"{own}.noise"] == "n.json"


def test_a_given_teacher_takes_the_place_of_the_comparisons_own(make):
    settings = make(strategies=["static"], overrides=["model.codert.teacher_checkpoint=big.nemo"])
    assert settings.strategies == ["static"] and plan(settings)[0].strategy == "static"
    given = [text for text in arguments_of(settings, "static") if "teacher_checkpoint" in text]
    assert given == ["model.codert.teacher_checkpoint=big.nemo"]


# ---- variants ------------------------------------------------------------------------------------------------------

TENTH = "model.train_ds.manifest_filepath={corpus}/train_labelled.json"
OF_FOLD = f"{CHECKPOINT}={{corpus}}/teacher.nemo"


def test_a_variant_is_its_strategy_with_overrides_of_its_own(make):
    weight = "model.codert.distillation.encoder.weight"
    settings = make(
        strategies=["student", "static", "static@low", "static@low-twin"],
        strategy_overrides={"static": [OF_FOLD], "static@low": [f"{weight}=0.05"]},
    )
    assert settings.strategies == ["student", "static", "static@low", "static@low-twin"]
    weights = [settings.config_of(name).get(weight) for name in settings.strategies]
    assert weights == [None, 0.1, 0.05, 0]
    arguments = training_arguments(settings, Cell("all", "static@low-twin", 0), "/data", "/out")
    assert "strategy=static" in arguments and "exp_manager.name=static@low-twin" in arguments
    assert arguments.index(f"{weight}=0.05") < arguments.index(f"++{weight}=0")
    assert f"{CHECKPOINT}=/data/teacher.nemo" in arguments


def test_a_variant_may_have_training_data_of_its_own_and_every_fold_a_teacher(make, tmp_path):
    settings = make(
        folded(tmp_path, "ann", "bob"),
        strategies=["student", "student@tenth", "static", "cached"],
        strategy_overrides={"student@tenth": [TENTH], "static": [OF_FOLD], "cached": [OF_FOLD]},
    )
    assert "teacher" not in settings.strategies
    arguments = training_arguments(settings, Cell("bob", "student@tenth", 1), "/data", "/out")
    data = [argument for argument in arguments if argument.startswith("model.train_ds")]
    assert data == ["model.train_ds.manifest_filepath=/data/bob/train_labelled.json"]
    plain = training_arguments(settings, Cell("bob", "student", 1), "/data", "/out")
    assert "model.train_ds.manifest_filepath='/data/bob/train.json'" in plain
    cell = Cell("bob", "cached", 1)
    assert f"{CHECKPOINT}=/data/bob/teacher.nemo" in training_arguments(settings, cell, "/data", "/out")
    assert target_arguments(settings, cell, "/data", "/out")[:2] == ["--teachers", "/data/bob/teacher.nemo"]
    assert '"model.train_ds.manifest_filepath=$DATA/bob/train_labelled.json"' in shell_command(
        settings, Cell("bob", "student@tenth", 1)
    )


def test_arguments_of_a_variant_compose_to_its_config(make):
    mix = "+model.train_ds.input_cfg=[{type: nemo, manifest_filepath: {corpus}/train_labelled.json, weight: 0.5}]"
    own = ["model.train_ds.manifest_filepath=null", mix, "model.train_ds.batch_size=32"]
    settings = make(strategies=["student", "student@mix"], strategy_overrides={"student@mix": own})
    arguments = training_arguments(settings, Cell("all", "student@mix", 0), "/data", "/out")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose("fsdd", list(config_search(arguments).overrides))
    data = cfg.model.train_ds
    assert (data.batch_size, data.manifest_filepath) == (32, None)
    assert data.input_cfg[0].manifest_filepath == "/data/train_labelled.json"


def test_a_folder_that_cannot_stand_in_an_override_is_named(make):
    settings = make(strategies=["student@tenth"], strategy_overrides={"student@tenth": [TENTH]})
    with pytest.raises(ValueError, match=r"/a b has characters that an override with \{corpus\} cannot hold"):
        training_arguments(settings, Cell("all", "student@tenth", 0), "/a b", "/out")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"strategy_overrides": {"student": [TENTH]}}, "sets model.train_ds.manifest_filepath, which the comparison"),
        ({"strategy_overrides": {"tandem_kd": ["model.train_ds.batch_size=4"]}}, "for a variant, tandem_kd@LABEL"),
        ({"strategy_overrides": {"tandem_kd": ["model.student.durations=[0,1]"]}}, "for a variant, tandem_kd@LABEL"),
        ({"overrides": [OF_FOLD]}, "it is for one strategy"),
        ({"strategies": ["student", "no_such@low"]}, "there is no strategy 'no_such'"),
        ({"strategy_overrides": {"tandem_kd@low": ["model.optim.lr=1"]}}, "--override is for tandem_kd@low, but"),
        (
            {"strategies": ["student", "student@slow"], "strategy_overrides": {"student@slow": ["model.optim.lr=1"]}},
            "updates, data and student must be the same",
        ),
    ],
)
def test_a_variant_that_would_not_compare_is_refused(given, message, make):
    with pytest.raises(ValueError, match=message):
        make(**given)


# ---- seeds of every fold's own -------------------------------------------------------------------------------------


def test_no_two_trainings_of_a_strategy_have_one_seed_where_every_fold_has_its_own(make, tmp_path):
    data = folded(tmp_path, "ann", "bob", "cat")
    settings = make(data, seeds=[0, 1], own_seeds=True)
    seeds = {
        (cell.fold, cell.seed): next(
            word for word in training_arguments(settings, cell, "/d", "/o") if "seed=" in word
        )
        for cell in plan(settings)
        if cell.strategy == "student"
    }
    assert seeds[("ann", 0)] == "seed=0" and seeds[("cat", 0)] == "seed=2" and seeds[("ann", 1)] == "seed=3"
    assert len(set(seeds.values())) == len(seeds) == 6
    settings.write(tmp_path)
    assert read_settings(tmp_path) == settings
    assert extended(settings, make(data, ["bob"], seeds=[2], own_seeds=True), tmp_path).seeds == [0, 1, 2]
    with pytest.raises(ValueError, match="own_seeds is False, the folder has True"):
        extended(settings, make(data), tmp_path)
    folded(tmp_path, "dan")
    with pytest.raises(ValueError, match="folds, which their seeds depend on"):
        extended(settings, make(data, own_seeds=True), tmp_path)


def test_a_comparison_with_seed_0_alone_takes_further_folds(make, tmp_path):
    settings = make(folded(tmp_path, "bob", "cat"), seeds=[0], own_seeds=True)
    more = extended(settings, make(folded(tmp_path, "ann"), seeds=[0], own_seeds=True), tmp_path)
    assert [(cell.fold, more.seed_of(cell)) for cell in plan(more) if cell.strategy == "student"] == [
        ("bob", 0), ("cat", 1), ("ann", 2),
    ]  # fmt: skip


def test_targets_are_stored_where_none_are_given(make):
    folder = "/out/cells/all/seed0/cached"
    teacher = "/out/cells/all/seed0/teacher/run/teacher.nemo"
    settings, cell = make(strategies=["cached"]), Cell("all", "cached", 0)
    stored = ["--teachers", teacher, "--manifest", "/data/train.json", "--keep", "encoder", "--output"]
    assert target_arguments(settings, cell, "/data", "/out") == [*stored, f"{folder}/targets"]
    assert f"model.codert.teacher_cache='{folder}/targets'" in arguments_of(settings, "cached")
    assert "nemo_codert.cli.cache" in shell_command(settings, cell)
    settings = make(strategies=["cached"], strategy_overrides={"cached": ["model.codert.teacher_cache=mixture"]})
    assert settings.strategies == ["cached"] and target_arguments(settings, cell, "/data", "/out") == []
    assert [text for text in arguments_of(settings, "cached") if "teacher_c" in text] == [
        "model.codert.teacher_cache=mixture"
    ]


# ---- continuing ----------------------------------------------------------------------------------------------------


def test_strategies_seeds_and_folds_may_be_added(make, tmp_path):
    data = folded(tmp_path, "ann", "bob")
    stored = make(data, ["ann"])
    wanted = make(data, ["bob"], strategies=["static"], seeds=[5, 1], versions={"torch": "2"})
    both = extended(stored, wanted, tmp_path)
    assert both.strategies == ["teacher", "student", "tandem_kd", "static"]
    assert both.changes.keys() == set(both.strategies)
    assert both.seeds == [0, 1, 5] and list(both.folds) == ["ann", "bob"]
    assert both.versions == stored.versions
    assert extended(stored, stored, tmp_path) == stored


@pytest.mark.parametrize(
    "given, message",
    [
        ({"overrides": ["model.optim.lr=1"]}, "model.optim.lr is 1, the folder has 0.25"),
        ({"max_steps": 4000}, "trainer.max_steps is 4000, the folder has 2000"),
        ({"threads": 2}, "threads is 2, the folder has 1"),
        (
            {"config_name": "quickstart", "overrides": ["trainer.val_check_interval=200"]},
            "config_name is 'quickstart', the folder has 'fsdd'",
        ),
        (
            {"strategy_overrides": {"tandem_kd": ["model.codert.distillation.weight=0.3"]}},
            r"model.codert.distillation.encoder.weight \(of tandem_kd\) is 0.3, the folder has 0.1",
        ),
        (
            {"strategy_overrides": {"tandem_kd": ["model.codert.distillation.temperature=2"]}},
            r"model.codert.distillation.encoder.temperature \(of tandem_kd\) is 2, the folder has 1.0",
        ),
    ],
)
def test_other_settings_are_refused_by_name(given, message, make, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        extended(make(), make(**given), tmp_path)
    assert "Continue it with its own settings, or give another --output-dir" in str(caught.value)


def test_a_teacher_alone_may_have_a_learning_rate_of_its_own(make):
    settings = make(strategies=["student", "static"], strategy_overrides={"teacher": ["model.optim.lr=0.5"]})
    assert settings.changes["teacher"]["model.optim.lr"] == 0.5 and "model.optim.lr" not in settings.changes["static"]


def test_a_key_that_came_into_the_package_later_is_taken_for_its_default(make, tmp_path):
    key, stored = "model.codert.student_loss_from_step", make()
    assert stored.config[key] == 0
    before = Settings(**{**stored.__dict__, "config": {k: v for k, v in stored.config.items() if k != key}})
    assert extended(before, make(), tmp_path).config == before.config
    with pytest.raises(ValueError, match=f"{key} is 2, the folder has 0"):
        extended(before, make(overrides=["model.optim.lr=0.25", f"{key}=2"]), tmp_path)


def before_named_terms(now: Settings, weight: float) -> Settings:
    """Settings as versions without named terms wrote them, tandem_kd with a weight."""
    flat = "model.codert.distillation"
    shipped = {"weight": 0.0, "temperature": 1.0, "reduction": "per_utterance", "start_step": 0, "ramp_steps": 0}
    config = {**now.config, **{f"{flat}.{key}": value for key, value in shipped.items()}}
    changes = {**now.changes, "tandem_kd": {**now.changes["tandem_kd"], f"{flat}.weight": weight}}
    changes["tandem_kd"].pop(f"{flat}.encoder.weight")
    return Settings(**{**now.__dict__, "config": config, "changes": changes})


def test_a_comparison_from_before_the_named_terms_is_continued(make, tmp_path):
    now = make(strategies=["student", "tandem", "tandem_kd"])
    before = before_named_terms(now, 0.1)
    assert extended(before, now, tmp_path) == before
    with pytest.raises(ValueError, match=r"encoder.weight \(of tandem_kd\) is 0.1, the folder has 0.3"):
        extended(before_named_terms(now, 0.3), now, tmp_path)


def test_a_comparison_from_before_the_named_terms_is_extended_again_and_again(make, tmp_path):
    first = extended(before_named_terms(make(), 0.1), make(strategies=["shared_joint", "shared_kd"]), tmp_path)
    assert first.strategies == ["student", "tandem_kd", "shared_joint", "shared_kd"]
    assert extended(first, make(strategies=first.strategies), tmp_path) == first
    added = ["tandem_kd-twin", "shared_joint-twin"]
    second = extended(first, make(strategies=added), tmp_path)
    assert extended(second, make(strategies=second.strategies), tmp_path) == second
    other = {"shared_joint": ["model.codert.distillation.joint.weight=0.3"]}
    with pytest.raises(ValueError, match=r"joint.weight \(of shared_joint\) is 0.3, the folder has 0.1"):
        extended(second, make(strategies=second.strategies, strategy_overrides=other), tmp_path)


def test_the_noise_of_strategies_that_are_added_later_is_theirs_and_stays_the_same(make, tmp_path):
    lr, noise = "model.optim.lr=0.25", "model.codert.student_hears.noise"
    stored = make(strategies=["student"])
    both = extended(stored, make(strategies=["noise_robust"], overrides=[lr, f"{noise}=a.json"]), tmp_path)
    assert both.overrides == [lr, f"{noise}=a.json"] and f"{noise}=a.json" in arguments_of(both, "noise_robust")
    again = make(strategies=["noise_robust-twin"], overrides=[lr, f"{noise}=a.json"])
    assert extended(both, again, tmp_path).overrides == both.overrides
    with pytest.raises(ValueError, match=rf"{noise} is '{noise}=b.json', the folder has '{noise}=a.json'"):
        extended(both, make(strategies=["noise_robust-twin"], overrides=[lr, f"{noise}=b.json"]), tmp_path)


@pytest.mark.parametrize("place", [0, 39])
def test_other_audio_under_the_same_manifests_is_refused(make, corpus, tmp_path, place):
    audio = corpus / "audio" / "train" / f"{place:03d}.wav"
    audio.parent.mkdir(parents=True)
    audio.write_bytes(b"in noise of 0 dB")
    before = make()
    audio.write_bytes(b"in noise of 20 dB")
    with pytest.raises(ValueError, match="sha256 of all/audio of train.json is"):
        extended(before, make(), tmp_path)


def test_many_differences_are_cut_short(make, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_codert.compare.plan.REPORTED_DIFFERENCES", 2)
    changed = [f"model.optim.{key}=0.5" for key in ("lr", "weight_decay", "sched.min_lr")]
    with pytest.raises(ValueError, match="other settings:\n  - .* 0.5, .*\n  - .* 0.5, .*\n  - ... and 1 more\n"):
        extended(make(), make(overrides=changed), tmp_path)


def test_other_data_are_refused_by_name(make, corpus, tmp_path):
    stored = make()
    lines = (corpus / "test_seen.json").read_text().splitlines()
    (corpus / "test_seen.json").write_text("\n".join(lines[1:]) + "\n")
    (corpus / "tokenizer" / "tokenizer.model").write_text("other pieces")
    with pytest.raises(ValueError, match="sha256 of all/test_seen.json is") as caught:
        extended(stored, make(), tmp_path)
    assert "sha256 of all/tokenizer/tokenizer.model is" in str(caught.value)
    assert "train.json" not in str(caught.value)


# ---- cells ---------------------------------------------------------------------------------------------------------


def test_cells_go_seed_by_seed_with_the_teacher_first(make, tmp_path):
    settings = make(folded(tmp_path, "ann", "bob"), strategies=["student", "static"])
    assert [str(cell) for cell in plan(settings)] == [
        f"{fold}, seed {seed}, {strategy}"
        for seed in (0, 1)
        for fold in ("ann", "bob")
        for strategy in ("teacher", "student", "static")
    ]
    assert {cell.strategy for cell in plan(settings, ["student"])} == {"student"}
    assert [cell.strategy for cell in plan(settings, ["static"])][:2] == ["teacher", "static"]
    with pytest.raises(ValueError, match="--only names 'shared', the comparison has teacher, student, static"):
        plan(settings, ["student", "shared"])


def test_what_is_named_twice_is_one_cell(make, tmp_path):
    data = folded(tmp_path, "ann", "bob")
    settings = make(data, ["ann", "bob", "ann"], strategies=["student", "static", "student"], seeds=[1, 0, 1])
    assert (settings.strategies, settings.seeds) == (["teacher", "student", "static"], [1, 0])
    assert len(plan(settings)) == len(set(plan(settings))) == 2 * 3 * 2
    only = plan(settings, ["student", "student"], [0, 0], ["bob", "bob"])
    assert only == [Cell("bob", "student", 0)]


@pytest.mark.parametrize("root", ["plain", "my data, (1)", 'it\'s "quoted" $HOME', "a=b\\"])
@pytest.mark.parametrize("strategy", ["student", "static"])
def test_a_command_composes_to_the_settings_and_the_paths_of_its_cell(strategy, root, make):
    settings = make(strategies=["student", "static"], overrides=["model.optim.lr=0.5"], max_steps=400)
    cell = Cell("all", strategy, 7)
    name, *overrides = training_arguments(settings, cell, f"/{root}/data", f"/{root}/out")
    assert name == "--config-name=fsdd"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose("fsdd", overrides)
    assert cfg.model.train_ds.manifest_filepath == f"/{root}/data/train.json"
    assert cfg.model.validation_ds.manifest_filepath == f"/{root}/data/dev.json"
    tests = [f"/{root}/data/{name}.json" for name in ("test_seen", "test_unseen")]
    assert cfg.model.test_ds.manifest_filepath == tests
    assert cfg.model.tokenizer.dir == f"/{root}/data/tokenizer"
    manager = cfg.exp_manager
    assert f"{manager.exp_dir}/{manager.name}/{manager.version}" == f"/{root}/out/{cell.folder}/run"
    teacher = f"/{root}/out/cells/all/seed7/teacher/run/teacher.nemo"
    assert cfg.model.codert.teacher_checkpoint == (teacher if strategy == "static" else None)
    assert cfg.seed == 7
    wanted = {**settings.config, **settings.changes[strategy]}
    ours = {
        key: value
        for key, value in flat(OmegaConf.to_container(cfg))
        if key not in (*OWN_KEYS, CHECKPOINT, "exp_manager.version") and value is not None
    }
    assert ours == {key: value for key, value in wanted.items() if key in ours}
    assert composed("fsdd", strategy, ["model.optim.lr=0.5", "trainer.max_steps=400"]) == wanted


def test_a_command_for_the_shell_gives_the_arguments_of_the_training(make):
    overrides = ["+model.note='a b $c'", "model.optim.betas=[0.9,0.99]"]
    settings = make(strategies=["student", "static"], overrides=overrides)
    cell = Cell("all", "static", 3)
    command = shell_command(settings, cell)
    assert command.startswith(
        "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m nemo_codert.cli.train --config-name=fsdd "
    )
    listed = command.replace("python -m nemo_codert.cli.train", "printf '%s\\n'")
    script = f"DATA=/some/data; OUTPUT=/some/out; {listed}"
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == training_arguments(settings, cell, "/some/data", "/some/out")
    assert "/some" not in command and shlex.split(command)


def test_settings_are_plain_text_that_a_person_can_read(make, tmp_path):
    make().write(tmp_path)
    text = (tmp_path / "comparison.json").read_text()
    assert json.loads(text)["config"]["model.optim.lr"] == 0.25 and "\n  " in text
