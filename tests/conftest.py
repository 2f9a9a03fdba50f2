"""Fixtures: a tiny tokenizer, tiny speech-like audio, and tiny pair configs that build in milliseconds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import logging
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker, spawn
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests import preloaded_python as preloaded

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16000
SENTENCES = [
    "turn the light on",
    "turn the right light off",
    "play the next song",
    "call ken in the shed",
    "set the clock to ten",
    "open the red door now",
    "what is the time",
    "stop the music please",
]


class WithoutNeMo:
    """An import hook that makes every import of NeMo and Lightning an error."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("nemo", "lightning"):
            raise ModuleNotFoundError(f"{name} is imported under --without-nemo", name=name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-nemo", action="store_true", help="make importing NeMo an error, as `make unit` does")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-nemo"):
        assert not {"nemo", "lightning"} & sys.modules.keys()
        sys.meta_path.insert(0, WithoutNeMo())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two workers none is then left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    # Some 80 loggers of torch's compiler hand nothing up. To each of such pytest adds its handlers six times a test.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True  # to `torch`, which still hands nothing up


@pytest.fixture(autouse=True)
def restored_random_state():
    """Every test starts from seed 0 and leaves the generators as it found them."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(0), np.random.seed(0)
    # Without a GPU torch.manual_seed keeps a stack trace for the day when there is one, which takes a millisecond.
    torch.manual_seed(0) if torch.cuda.is_available() else torch.default_generator.manual_seed(0)
    yield
    random.setstate(states[0]), np.random.set_state(states[1]), torch.random.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def package_log_as_a_library_has_it(monkeypatch):
    """Whatever ran before, a test can read the package's warnings with caplog.

    Scripts send the package's log to their own output; libraries raise the root's level, disable loggers or all of
    logging.
    """
    log = logging.getLogger("nemo_codert")
    state = log.level, log.propagate, list(log.handlers)
    log.propagate, log.handlers[:] = True, []
    log.setLevel(logging.WARNING)  # also clears what other loggers remember of the root's
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    for handler in logging.root.handlers:  # pytest's own, one for all tests, which NeMo's log level reaches
        handler.setLevel(logging.NOTSET)
    for name, other in logging.root.manager.loggerDict.items():
        if name.startswith("nemo_codert") and isinstance(other, logging.Logger):
            other.disabled = False
    yield
    log.propagate, log.handlers[:] = state[1:]
    log.setLevel(state[0])


@pytest.fixture(scope="session")
def preloaded_python() -> Iterator[str]:
    """A program to start in place of `sys.executable` where a new process needs NeMo: it has been imported."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "socket")
        command = [sys.executable, preloaded.__file__, "--serve", address]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        server = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, **pipes)
        assert any(line == b"ready\n" for line in server.stdout), "the server ended"  # libraries may print before
        os.environ.update({preloaded.SOCKET: address, preloaded.INTERPRETER: sys.executable})
        yield preloaded.__file__
        del os.environ[preloaded.SOCKET], os.environ[preloaded.INTERPRETER]
        server.stdin.close()
        server.wait()


@pytest.fixture
def preloaded_spawn(preloaded_python) -> Iterator[None]:
    """Processes that multiprocessing starts anew are preloaded too."""
    resource_tracker.ensure_running()  # that one stays an ordinary process
    before = spawn.get_executable()
    spawn.set_executable(preloaded_python)
    yield
    spawn.set_executable(before)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A folder with a SentencePiece BPE tokenizer of 32 pieces."""
    from nemo_codert.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SENTENCES, folder, vocab_size=32)
    return folder


def tone(seconds: float, seed: int) -> np.ndarray:
    """A deterministic sweep with noise: no speech, but features that differ from one utterance to the next."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    start, end = generator.uniform(150, 900, 2)
    phase = 2 * np.pi * (start * time + (end - start) * time**2 / (2 * seconds))
    return (0.3 * np.sin(phase) + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """A manifest of eight utterances of 0.8-1.6 s."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i, text in enumerate(SENTENCES):
        audio = tone(0.8 + 0.1 * i, seed=i)
        soundfile.write(folder / f"{i}.wav", audio, SAMPLE_RATE)
        lines.append({"audio_filepath": str(folder / f"{i}.wav"), "duration": len(audio) / SAMPLE_RATE, "text": text})
    path = folder / "manifest.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def conformer(layers: int = 1, channels: int = 16, subsampling: int = 4) -> dict:
    """A tiny Conformer without dropout and with layer norm, so that batches cannot leak into each other."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": 32,
        "feat_out": -1,
        "n_layers": layers,
        "d_model": channels,
        "subsampling": "dw_striding",
        "subsampling_factor": subsampling,
        "subsampling_conv_channels": 8,
        "ff_expansion_factor": 2,
        "self_attention_model": "rel_pos",
        "n_heads": 2,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "conv_kernel_size": 5,
        "conv_norm_type": "layer_norm",
        "dropout": 0.0,
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.0,
        "dropout_att": 0.0,
    }


def lstm(layers: int = 1, channels: int = 24, projection: int = 16, subsampling: int = 4) -> dict:
    """A tiny unidirectional LSTM encoder as NeMo can run it."""
    return {
        "_target_": "nemo.collections.asr.modules.RNNEncoder",
        "feat_in": 32,
        "n_layers": layers,
        "d_model": channels,
        "proj_size": projection,
        "rnn_type": "lstm",
        "bidirectional": False,
        "subsampling": "striding",
        "subsampling_factor": subsampling,
        "subsampling_conv_channels": 8,
        "dropout": 0.0,
    }


ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK = "nemo.collections.asr.modules.RNNTJoint"

# What conf/strategy/*.yaml put into model.codert, for the strategies that train a pair.
STRATEGIES = {
    "static": {"teacher": "frozen", "share_decoder": False, "distillation": {"weight": 0.1}},
    "tandem": {"teacher": "co_trained", "share_decoder": False, "distillation": {"weight": 0.0}},
    "tandem_kd": {"teacher": "co_trained", "share_decoder": False, "distillation": {"weight": 0.1}},
    "shared": {"teacher": "co_trained", "share_decoder": True, "distillation": {"weight": 0.0}},
    "shared_kd": {"teacher": "co_trained", "share_decoder": True, "distillation": {"weight": 0.1}},
    "static_shared": {"teacher": "frozen", "share_decoder": True, "distillation": {"weight": 0.1}},
}


@pytest.fixture(scope="session")
def make_config(tokenizer_dir):
    """Factory of tiny model configs: `make_config(strategy="shared_kd", joint=ADDITIVE, **overrides)`."""
    from omegaconf import OmegaConf

    def make(strategy: str = "shared_kd", joint: str = ADDITIVE, teacher=None, student=None, **overrides):
        teacher = teacher or conformer(layers=2, channels=24)
        width = teacher.get("proj_size", teacher["d_model"])
        cfg = OmegaConf.create(
            {
                "sample_rate": SAMPLE_RATE,
                "log_prediction": False,
                "compute_eval_loss": True,
                "model_defaults": {"enc_hidden": width, "pred_hidden": 20, "joint_hidden": 20},
                "tokenizer": {"dir": str(tokenizer_dir), "type": "bpe"},
                "preprocessor": {
                    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                    "sample_rate": SAMPLE_RATE,
                    "normalize": "per_feature",
                    "window_size": 0.025,
                    "window_stride": 0.01,
                    "features": 32,
                    "n_fft": 512,
                    "dither": 0.0,
                    "pad_to": 0,
                },
                "encoder": teacher,
                "student": {"encoder": student or conformer(layers=1, channels=16)},
                "codert": STRATEGIES[strategy],
                "decoder": {
                    "_target_": "nemo.collections.asr.modules.RNNTDecoder",
                    "normalization_mode": None,
                    "random_state_sampling": False,
                    "blank_as_pad": True,
                    "prednet": {"pred_hidden": 20, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
                },
                "joint": {
                    "_target_": joint,
                    "log_softmax": None,
                    "jointnet": {"joint_hidden": 20, "activation": "relu", "dropout": 0.0},
                },
                "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 5}, "beam": {"beam_size": 2}},
                "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0}},
                "optim": {"name": "adamw", "lr": 1e-3},
            }
        )
        return OmegaConf.merge(cfg, overrides)

    return make


@pytest.fixture
def make_model(make_config):
    """Factory of tiny pairs, seeded: `make_model(strategy=..., joint=..., **overrides)`."""
    from nemo_codert.models import EncDecCoDERTBPEModel

    def make(*args, **kwargs):
        torch.manual_seed(0)
        return EncDecCoDERTBPEModel(make_config(*args, **kwargs))

    return make


class BuiltPair:
    """A pair and all of it that computing and training change."""

    def __init__(self, model) -> None:
        self.model = model
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.trainable = [parameter.requires_grad for parameter in model.parameters()]
        self.modes = [module.training for module in model.modules()]
        self.has_weights, self.generator = model._teacher_has_weights, torch.random.get_rng_state()

    def restored(self):
        """The pair as it was built, with the random numbers that were next then."""
        self.model.load_state_dict(self.weights)
        for parameter, trainable in zip(self.model.parameters(), self.trainable, strict=True):
            parameter.grad = None
            parameter.requires_grad_(trainable)
        for module, mode in zip(self.model.modules(), self.modes, strict=True):
            module.training = mode
        self.model._teacher_has_weights = self.has_weights
        torch.random.set_rng_state(self.generator)
        return self.model


@pytest.fixture(scope="session")
def built_pairs() -> dict[str, BuiltPair]:
    return {}


@pytest.fixture
def shared_pair(make_model, built_pairs):
    """`make_model` for tests that only compute and train: one pair for each config, handed out as it was built.

    A second call with the same arguments gives the same object. Tests that change anything but weights, gradients
    and modes (the config, the decoding, hooks, a dtype, a trainer) build their own.
    """

    def make(*args, **kwargs):
        key = repr((args, sorted(kwargs.items())))
        if key not in built_pairs:
            built_pairs[key] = BuiltPair(make_model(*args, **kwargs))
        return built_pairs[key].restored()

    return make


def padded_batch(signals: list[torch.Tensor], tokens: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Signal [B, S], signal_len, transcript [B, U], transcript_len."""
    lengths = [torch.tensor([len(row) for row in rows]) for rows in (signals, tokens)]
    signal, transcript = (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (signals, tokens))
    return signal, lengths[0], transcript, lengths[1]


@pytest.fixture(scope="session")
def session_batch(tokenizer_dir):
    """One training batch of four ragged utterances: signal [B, S], signal_len, transcript [B, U], transcript_len.

    For fixtures of a wider scope than one test, which must not change it.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
    signals = [torch.from_numpy(tone(0.8 + 0.2 * i, seed=i)) for i in range(4)]
    tokens = [torch.tensor(processor.encode(text)) for text in SENTENCES[:4]]
    return padded_batch(signals, tokens)


@pytest.fixture
def batch(session_batch):
    """A copy of that batch for every test: NeMo's preprocessor adds its dither to the signal in place."""
    return tuple(tensor.clone() for tensor in session_batch)
