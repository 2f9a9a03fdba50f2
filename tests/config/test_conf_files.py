"""Every YAML under conf/: composed with every strategy, checked, and built (the big ones shrunk) as a model."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.checked import checked_config
from nemo_codert.config.search import term_override

pytestmark = pytest.mark.unit

CONF = Path(__file__).resolve().parents[2] / "conf"
LIBRISPEECH = ("librispeech_conformer", "librispeech_fastconformer", "librispeech_lstm")
STREAMING = {"fsdd_streaming": "fsdd", "librispeech_fastconformer_streaming": "librispeech_fastconformer"}
HEIRS = {**STREAMING, "words": "fsdd", "fsdd_tdt": "fsdd"}  # file: the one it is built on
TOP = ("fsdd", "fsdd_tdt", "quickstart", "words", *LIBRISPEECH, *STREAMING)
SMALL = ("fsdd", "fsdd_streaming", "fsdd_tdt", "quickstart", "words")  # built as they are

# strategy: train, teacher, share_decoder, distillation weight; None where the file leaves the base's value.
STRATEGIES = {
    "student": ("student", None, None, 0.0),
    "teacher": ("teacher", None, None, 0.0),
    "static": ("pair", "frozen", False, 0.1),
    "tandem": ("pair", "co_trained", False, 0.0),
    "tandem_kd": ("pair", "co_trained", False, 0.1),
    "shared": ("pair", "co_trained", True, 0.0),
    "shared_kd": ("pair", "co_trained", True, 0.1),
    "static_shared": ("pair", "frozen", True, 0.1),
    "ema": ("pair", "ema", False, 0.0),
    "two_views": ("pair", "ema", False, 0.0),
}
# What a strategy has besides: other keys of model.codert, and the terms of the distillation, without a term `encoder`.
VIEWS = {"encoder": None, "views": {"at": "joint", "nodes": "occupied", "weight": 0.2}}
MASKS = {"freq_masks": 2, "time_masks": 2, "freq_width": 15, "time_width": 0.05}
MORE = {
    "ema": {"ema_decay": 0.999, "distillation": VIEWS},
    "two_views": {"ema_decay": 0.0, "student_hears": {"spec_augment": MASKS}, "distillation": VIEWS},
}
# Strategies of the systems of docs/methods.md; tests/config/test_method_strategies.py composes and builds them.
METHODS = "static_prior shared_kd_prior static_joint shared_joint static_occupied one_best collapsed two_stage".split()
METHODS += "shared_occupied noise_robust features inter_kd cached target_speaker".split()
# Settings of NeMo's streaming pipelines, composed with nothing; tests/export/test_student_in_nemo.py builds them.
PIPELINES = {"inference/buffered_rnnt": "buffered", "inference/cache_aware_rnnt": "cache_aware"}
# Values that differ from those of every strategy file: whatever is left of them was not set.
MARKS = {"train": "unset", "model.codert.teacher": "unset", "model.codert.share_decoder": "unset"}
MARKS["model.codert.distillation.encoder.weight"] = 123.0


# Every strategy with one file, every file with two strategies, which together change all four keys.
PAIRS = [(strategy, "fsdd") for strategy in STRATEGIES]
PAIRS += [(strategy, name) for name in TOP[1:] for strategy in ("student", "static")]
# Of the two kinds of defaults lists, on the base and on another file.
TWO_KINDS = ("fsdd", "fsdd_streaming")


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(name, list(overrides))
    OmegaConf.set_struct(cfg, False)
    return cfg


def composed(name: str, *overrides: str) -> DictConfig:
    """The config as scripts/train.py gets it."""
    return copy.deepcopy(_composed(name, overrides))


def model_section(name: str, tokenizer_dir: Path, *overrides: str) -> DictConfig:
    """The model section without data, its tokenizer being the fixture's."""
    cfg = composed(name, *overrides)
    cfg.model.tokenizer.dir = str(tokenizer_dir)
    for key in ("train_ds", "validation_ds"):
        cfg.model.pop(key)
    return OmegaConf.create(OmegaConf.to_container(cfg.model, resolve=True))


def shrunk(cfg: DictConfig) -> DictConfig:
    """One layer of a few channels, everything else as it is."""
    for encoder, channels in ((cfg.encoder, 32), (cfg.student.encoder, 16)):
        encoder.n_layers, encoder.d_model = 1, channels
        if "proj_size" in encoder:
            encoder.proj_size = channels // 2
        if "n_heads" in encoder:
            encoder.n_heads, encoder.subsampling_conv_channels = 2, 8
    cfg.model_defaults.enc_hidden = cfg.encoder.get("proj_size", cfg.encoder.d_model)
    cfg.model_defaults.pred_hidden = cfg.decoder.prednet.pred_hidden = 16
    return cfg


def built_encoder(encoder: DictConfig) -> torch.nn.Module:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    return EncDecRNNTBPEModel.from_config_dict(encoder)


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@cache  # several files have the same teacher
def _millions_of(encoder: str) -> float:
    encoder = OmegaConf.create(encoder)
    one, two = (millions(built_encoder({**encoder, "n_layers": layers})) for layers in (1, 2))
    return one + (encoder.n_layers - 1) * (two - one)


def millions_of(encoder: DictConfig) -> float:
    """Parameters of an encoder of like layers, from one and two of them: a full-size one takes seconds to build."""
    return _millions_of(OmegaConf.to_yaml(encoder))


def test_every_yaml_is_known_here():
    found = {str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml")}
    assert found == {"base", *TOP, *(f"strategy/{name}" for name in (*STRATEGIES, *METHODS)), *PIPELINES}
    assert len(found) == 36


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_file_explains_itself_and_asks_for_a_model_only(name):
    assert (CONF / f"{name}.yaml").read_text().startswith("# NeMo's ")
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    assert cfg.pipeline_type == PIPELINES[name] and OmegaConf.missing_keys(cfg) == {"asr.model_name"}
    assert cfg.asr.decoding.strategy == "greedy_batch"


@pytest.mark.parametrize("strategy", [*STRATEGIES, *METHODS])
def test_a_strategy_file_starts_with_the_global_package_line(strategy):
    lines = (CONF / "strategy" / f"{strategy}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"  # anything above it, and the file silently changes nothing
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("name", TOP)
def test_a_config_explains_itself_and_is_built_on_the_base(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    if name in HEIRS:
        assert f"defaults:\n  - {HEIRS[name]}\n  - _self_\n\n" in text
    else:
        assert "defaults:\n  - base\n  - _self_\n  - strategy: shared_kd\n" in text
    assert composed(name).name == name


def _with_weight(terms: DictConfig, weight: float) -> dict | None:
    """The terms with the weight of the term `encoder`; null where a strategy distils nothing."""
    return {**terms, "encoder": {**terms.get("encoder", {}), "weight": weight}} if weight else None


@pytest.mark.parametrize("strategy, name", PAIRS)
def test_a_strategy_changes_exactly_its_keys_of_the_merged_config(strategy, name):
    plain = composed(name, "~strategy")
    cfg = composed(name, f"strategy={strategy}")
    train, teacher, share_decoder, weight = STRATEGIES[strategy]
    expected = copy.deepcopy(plain)
    expected.train = train
    expected.model.codert.distillation = _with_weight(plain.model.codert.distillation, weight)
    if teacher is not None:
        expected.model.codert.teacher, expected.model.codert.share_decoder = teacher, share_decoder
    expected.model.codert.update(MORE.get(strategy, {}))
    assert cfg == expected
    assert plain.model.codert.teacher == "co_trained" and plain.model.codert.share_decoder is True


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_wins_over_the_file_that_it_is_used_with(strategy, tmp_path):
    base = OmegaConf.create({"model": {"codert": {"distillation": {}}}})
    for key, value in MARKS.items():
        OmegaConf.update(base, key, value)
    body = "defaults:\n  - _self_\n  - strategy: ???\n\n" + OmegaConf.to_yaml(base)
    (tmp_path / "marked.yaml").write_text(body)
    (tmp_path / "strategy").symlink_to(CONF / "strategy")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base=None):
        cfg = compose("marked", [f"strategy={strategy}"])
    train, teacher, share_decoder, weight = STRATEGIES[strategy]
    codert = cfg.model.codert
    terms = MORE.get(strategy, {}).get("distillation", {"encoder": {"weight": weight}} if weight else None)
    assert cfg.train == train and codert.distillation == terms
    assert codert.teacher == (teacher or "unset")
    assert codert.share_decoder == ("unset" if share_decoder is None else share_decoder)


@pytest.mark.parametrize("name", TWO_KINDS)
def test_the_command_line_wins_over_the_strategy(name):
    cfg = composed(name, term_override("model.codert.distillation.weight=0.7"), "strategy=tandem")
    assert cfg.model.codert.distillation.encoder.weight == 0.7


@pytest.mark.nemo
@pytest.mark.parametrize("strategy, name", PAIRS)
def test_a_config_passes_every_check_at_its_full_size(strategy, name, tokenizer_dir):
    cfg = model_section(name, tokenizer_dir, f"strategy={strategy}")
    codert = checked_config(cfg).codert
    assert {**codert, "distillation": None} == {**cfg.codert, "distillation": None}
    given = {name: term for name, term in (cfg.codert.distillation or {}).items() if term is not None}
    assert codert.distillation.keys() == given.keys()
    assert all(codert.distillation[name][key] == value for name, term in given.items() for key, value in term.items())


@pytest.mark.parametrize("name", TOP)
def test_a_run_ends_with_a_validation_and_counts_steps(name):
    trainer = composed(name).trainer
    assert trainer.max_steps % trainer.val_check_interval == 0  # NeMo would skip the last validation otherwise
    assert trainer.max_epochs == -1 and trainer.check_val_every_n_epoch is None
    assert trainer.use_distributed_sampler is False
    assert trainer.logger is False and trainer.enable_checkpointing is False  # made by exp_manager


@pytest.mark.parametrize("name", TOP)
def test_a_config_asks_the_user_for_paths_only(name):
    assert OmegaConf.missing_keys(composed(name)) == {
        "model.train_ds.manifest_filepath",
        "model.validation_ds.manifest_filepath",
        "model.tokenizer.dir",
        "exp_manager.exp_dir",
    }


@pytest.mark.parametrize("name", TOP)
def test_a_launch_command_in_the_header_composes(name):
    text = (CONF / f"{name}.yaml").read_text()
    command = re.search(r"codert train ((?:.*\\\n)*.*)", text.replace("#      ", "").replace("#   ", ""))
    assert command, name
    words = command[1].replace("\\\n", " ").split()
    assert words[0] == f"--config-name={name}"
    cfg = composed(name, *words[1:])
    assert not OmegaConf.missing_keys(cfg)


@pytest.mark.nemo
@pytest.mark.parametrize("name", TOP)
def test_the_parameters_named_in_the_header_are_those_of_the_built_networks(name, tokenizer_dir):
    cfg, pieces = (
        model_section(name, tokenizer_dir),
        {"fsdd": 40, "fsdd_streaming": 40, "fsdd_tdt": 40, "quickstart": 96, "words": 64}.get(name, 1024),
    )
    counts = {
        "teacher encoder": millions_of(cfg.encoder),
        "student encoder": millions_of(cfg.student.encoder),
        "prediction network": millions(built_encoder({**cfg.decoder, "vocab_size": pieces})),
    }
    print(f"\n{name}:", ", ".join(f"{part} {count:.2f} M" for part, count in counts.items()))
    header = (CONF / f"{name}.yaml").read_text().split("defaults:")[0]
    named = {part: float(count) for part, count in re.findall(r"^#   (\w+ \w+) +([\d.]+) M", header, re.MULTILINE)}
    assert named == {part: round(count, 2) for part, count in counts.items()}


@pytest.mark.nemo
@pytest.mark.parametrize("name, strategy", [
    ("fsdd", "static"), ("quickstart", "tandem"), ("librispeech_conformer", "shared_kd"),
    ("librispeech_fastconformer", "static"), ("librispeech_lstm", "tandem"), ("fsdd_streaming", "shared_kd"),
    ("words", "tandem_kd"), ("fsdd_tdt", "shared_kd"), ("librispeech_fastconformer_streaming", "static"),
])  # fmt: skip
def test_a_config_builds_a_pair(strategy, name, tokenizer_dir):
    from nemo_codert.models import EncDecCoDERTBPEModel

    cfg = model_section(name, tokenizer_dir, f"strategy={strategy}")
    model = EncDecCoDERTBPEModel(cfg if name in SMALL else shrunk(cfg))
    if name in SMALL:
        assert millions(model.student_encoder) < 0.5 < millions(model.encoder)
    assert (model.student_decoder is model.decoder) == (strategy == "shared_kd")
    assert model.teacher_frames_per_student_frame == 1
    assert any(parameter.requires_grad for parameter in model.encoder.parameters()) == (strategy != "static")


# A streaming file has the teacher of the file that it is built on, as the last test here says.
@pytest.mark.nemo
@pytest.mark.parametrize(
    "strategy, name",
    [("student", name) for name in TOP] + [("teacher", name) for name in TOP if name not in STREAMING],
)
def test_a_config_builds_the_stock_model_of_a_branch(strategy, name, tokenizer_dir):
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.models import student_config, teacher_config

    cfg = shrunk(model_section(name, tokenizer_dir, f"strategy={strategy}"))
    make, encoder = (student_config, cfg.student.encoder) if strategy == "student" else (teacher_config, cfg.encoder)
    model = EncDecRNNTBPEModel(make(cfg))
    assert type(model) is EncDecRNNTBPEModel
    assert model.encoder.d_model == encoder.d_model
    assert model.joint.encoder_hidden == encoder.get("proj_size", encoder.d_model)
    assert not hasattr(model, "student_encoder") and "codert" not in model.cfg


def test_a_tdt_config_changes_nothing_but_what_makes_both_models_tdt_models():
    cfg, plain = composed("fsdd_tdt").model, composed("fsdd").model
    durations = cfg.student.pop("durations")
    assert durations == cfg.decoding.durations == cfg.loss.tdt_kwargs.durations == [0, 1, 2, 3, 4]
    assert cfg.joint.pop("num_extra_outputs") == 5 and cfg.decoding.pop("model_type") == "tdt"
    cfg.decoding.pop("durations"), cfg.loss.pop("tdt_kwargs")
    assert cfg.loss.pop("loss_name") == "tdt" and plain.loss.pop("loss_name") == "default"
    cfg.model_defaults.pop("tdt_durations"), cfg.model_defaults.pop("num_tdt_durations")
    assert plain.student.pop("durations") is None and cfg == plain


@pytest.mark.parametrize("name, base", STREAMING.items())
def test_a_streaming_config_changes_the_students_encoder_and_what_a_stream_cannot_have(name, base):
    cfg, plain = composed(name), composed(base)
    assert cfg.model.encoder == plain.model.encoder and cfg.model.encoder.att_context_size == [-1, -1]
    assert cfg.model.preprocessor.pop("normalize") == "NA" and plain.model.preprocessor.pop("normalize") != "NA"
    encoder, left_out = cfg.model.student.encoder, plain.model.student.encoder
    for key in ("causal_downsampling", "att_context_size", "att_context_style", "conv_context_size", "conv_norm_type"):
        assert encoder.pop(key) != left_out.pop(key, None)
    cfg.name = base
    cfg.model.spec_augment.pop("mask_value", None)
    assert cfg == plain
