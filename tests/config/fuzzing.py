"""Configs as nobody would write them: the shipped ones with random keys deleted, changed and added."""

import copy
import math
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.models.build_faults import build_error, try_networks
from nemo_codert.training import run
from nemo_codert.training.run_checks import check_run
from tests.conftest import REPOSITORY

CONFIGS = sorted(path.stem for path in (REPOSITORY / "conf").glob("*.yaml") if path.stem != "base")
STRATEGIES = sorted(path.stem for path in (REPOSITORY / "conf" / "strategy").glob("*.yaml"))
SECONDS = 30  # a build and a step take under one
SETTINGS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *(2**31, -(2**31), 2**63, 2**64, 10**30, 999_999),
    *(
        "",
        " ",
        "x",
        "null",
        "\u00fc\u0000\ud7ff",
        "-1",
        "1e3",
        "???",
        "a" * 5000,
        "../..",
        "/dev/null",
        "/proc/self/mem",
    ),
    *("${oc.env:HOME}", "${nope}", "${.x}", "${", "${model}", "!!python/name:os.system"),
    *([], [[]], [1, "a", None], [math.nan], list(range(300)), {}, {"a": {"b": {"c": [{}]}}}, {"": 0}, {1: 2}),
    *({"_target_": "os.system", "command": "true"}, {"_target_": "nemo.collections.asr.modules.ConformerEncoder"}),
    *("os.system", "nemo_codert.modules.AdditiveRNNTJoint", "nemo.collections.asr.modules.RNNTJoint"),
]
NEW_KEYS = ["x", "_target_", "_args_", "_partial_", "_recursive_", "d_model", "\u00fc", "", "a.b", "sched", "name"]


def compose(name: str, strategy: str, given: dict[str, object]) -> dict:
    """A shipped config with networks of a size that is built in milliseconds, as plain dicts."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose(name, [f"strategy={strategy}", *(f"{key}={value}" for key, value in given.items())])
    plain = OmegaConf.to_container(cfg, resolve=False)
    model = plain["model"]
    for encoder in (model["encoder"], model["student"]["encoder"]):
        encoder.update(n_layers=1, subsampling_conv_channels=8, d_model=16)
        encoder.update({"proj_size": 8} if "proj_size" in encoder else {"n_heads": 2})
    model["model_defaults"].update(enc_hidden=model["encoder"].get("proj_size", 16), pred_hidden=8, joint_hidden=8)
    model["decoder"]["prednet"]["pred_rnn_layers"] = 1
    plain["trainer"].update(accelerator="cpu", devices=1, precision=32)
    return plain


def paths_in(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every key path of nested dicts and lists, blocks included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths_in(value, (*path, key))


@st.composite
def broken_configs(draw: Any, bases: list[dict]) -> tuple[dict, list[str]]:
    """One of the configs with one to four changes, and what these are."""
    cfg, changes = copy.deepcopy(draw(st.sampled_from(bases))), []
    for _ in range(draw(st.integers(1, 4))):
        places = sorted(paths_in(cfg), key=str)
        # The model's keys, our blocks among them, are most of what a config says; the rest gets its share.
        ours = [path for path in places if path[0] == "model" and len(path) > 1]
        place = draw(st.sampled_from(draw(st.sampled_from([ours, ours, places]))))
        parent = cfg
        for key in place[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["delete", "change", "change", "change", "add", "wrap"]))
        if kind == "delete":
            del parent[place[-1]]
        elif kind == "add" and isinstance(parent[place[-1]], dict):
            parent[place[-1]][draw(st.sampled_from(NEW_KEYS))] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif kind == "wrap":
            parent[place[-1]] = draw(st.sampled_from([[parent[place[-1]]], {"x": parent[place[-1]]}, str]))
            if parent[place[-1]] is str:
                parent[place[-1]] = "text"
        else:
            parent[place[-1]] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        now = repr(parent[place[-1]])[:60] if kind != "delete" else ""
        changes.append(f"{kind} {'.'.join(map(str, place))} {now}")
    return cfg, changes


class Hang(BaseException):
    """Raised where something takes longer than SECONDS; no `except Exception` swallows it."""


@contextmanager
def time_limit() -> Iterator[None]:
    """A hang ends the test in place of the suite."""

    def ring(*arguments: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


OURS = ("This run cannot start:\n  - ", "The model cannot be built:\n  - ", "The model config ", "model.", "Frozen")


def outcome(plain: dict, batch: tuple[torch.Tensor, ...]) -> str:
    """`valid`, or the first line of our error; anything else raises.

    As nemo_codert.training.run: the checks of the run, the model, its optimiser; then a step and a validation batch.
    """
    try:
        cfg = OmegaConf.create(plain)
    except Exception:
        return "no config"  # OmegaConf's own parser: Hydra would have said so before us
    with time_limit():
        try:
            model = built(cfg)
        except ValueError as error:
            assert str(error).startswith(OURS), f"not ours: {type(error).__name__}: {str(error)[:300]}"
            assert "Traceback" not in str(error)
            return str(error).split("\n")[0]
        assert_valid(model, batch)
    return "valid"


def built(cfg: DictConfig) -> Any:
    """As `prepare` does it, without a trainer and a run's folder."""
    with open_dict(cfg):
        cfg.train, cfg.seed = cfg.get("train", "pair"), cfg.get("seed", 0)
    checked = check_run(cfg)
    try:
        model = run.build_model(cfg, checked, None)
        try_networks(model)
    except Exception as error:
        raise build_error(cfg.model, error) from error
    run.check_optimiser(model)
    return model


def assert_valid(model: Any, batch: tuple[torch.Tensor, ...]) -> None:
    """A training step gives a loss and a validation batch is decoded; of NeMo's own classes, which ask a trainer for
    the step, the networks and the decoding do something.
    """
    if isinstance(model, EncDecCoDERTBPEModel):
        assert model.train().training_step(batch, 0)["loss"].dim() == 0
    model.eval()
    with torch.no_grad():
        if isinstance(model, EncDecCoDERTBPEModel):
            model.validation_pass(batch, 0)
        else:
            encoded = model(input_signal=batch[0], input_signal_length=batch[1])
            assert len(model.decoding.rnnt_decoder_predictions_tensor(*encoded)) == len(batch[0])


def fuzz(bases: list[dict], batch: tuple[torch.Tensor, ...], examples: int, *, seed: int) -> list[str]:
    """Outcomes of `examples` configs; that of one which ended neither in our error nor in a model begins with !."""
    outcomes: list[str] = []

    @hypothesis.seed(seed)
    @settings(max_examples=examples, phases=[Phase.generate], **SETTINGS)
    @given(broken_configs(bases))
    def change(drawn: tuple[dict, list[str]]) -> None:
        cfg, changes = drawn
        try:
            outcomes.append(outcome(cfg, batch))
        except (Exception, Hang) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            outcomes.append(f"! {' | '.join(changes)}: {type(error).__name__} {where} {str(error)[:200]}")

    change()
    return outcomes


def base_configs(manifest: Path, tokenizer_dir: Path, folder: Path, pairs: list[tuple[str, str]]) -> list[dict]:
    """Composed configs of the given names and strategies."""
    dev = folder.parent / "dev.json"  # NeMo names validation sets by their file and refuses `manifest`
    dev.write_text(manifest.read_text())
    given = {
        "model.train_ds.manifest_filepath": manifest,
        "model.validation_ds.manifest_filepath": dev,
        "model.tokenizer.dir": tokenizer_dir,
        "exp_manager.exp_dir": folder,
    }
    return [compose(name, strategy, given) for name, strategy in pairs]
