"""The commands of docs/training.md, from its text and in its order, on tiny data with few steps.

`codert` runs in this process; tests/package runs README.md with the installed package. What is not run is listed in
NOT_RUN with the reason; tests/test_docs.py looks at the commands of all other pages.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from tests.shell_blocks import shell_commands

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TRAINING = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
SPEAKERS = ("jackson", "nicolas", "theo", "yweweler", "george")

# Start of a command -> why it is not run here.
NOT_RUN = {
    "make quickstart": "it is the command of tests/scripts/test_quickstart.py, after an installation",
    "make test": "it runs this test",
    "python3 -m venv": "make test-package has an environment of its own",
    "pip install": "make test-package installs the wheel",
    "codert compare --config-name fsdd": "the README's runs: one command, another config",
}

# Appended to the benchmark: every part at sizes that take milliseconds. Memory is in tests/scripts/test_benchmark.py.
TINY_BENCHMARK = shlex.split(
    "--rounds 1 --slow-rounds 1 --skip-memory --shapes 1x6x2x8 --vocabularies 8 --lattice 1x6x2 --lattices 1x6x2 "
    "--lattices-vocabulary 8 --joint-shapes 1x6x2x8 --batch-size 1 --seconds 0.5 --tokens 2 --vocabulary 64 "
    "--teacher 2x32 --student 1x16 --pred-hidden 12 --joint-hidden 12 --decoding-batch-size 2 --decoding-frames 8"
)

# Appended to every training command.
FEW_STEPS = [
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "model.train_ds.batch_size=4",
]
# Where the command names a config with both encoders: a pair small enough to take two steps in a second.
SHORT = [
    *FEW_STEPS,
    "model.encoder.n_layers=1",
    "model.encoder.d_model=32",
    "model.model_defaults.enc_hidden=32",
    "model.student.encoder.n_layers=1",
    "model.student.encoder.d_model=32",
]
TINY_CORPUS = shlex.split("--train-utterances 50 --dev-utterances 4 --test-utterances 4 --vocab-size 48")
TINY_COMPARISON = [*shlex.split("--strategies student --seeds 0 --max-steps 2 --jobs 1 --"), *SHORT[1:]]

# The parts of NeMo's examples/asr/conf/conformer/conformer_transducer_bpe.yaml that a training needs, small.
STOCK_CONFIG = """
name: stock-transducer
model:
  sample_rate: 16000
  compute_eval_loss: false
  log_prediction: false
  skip_nan_grad: false
  model_defaults: {enc_hidden: 32, pred_hidden: 16, joint_hidden: 16}
  train_ds:
    manifest_filepath: ???
    sample_rate: ${model.sample_rate}
    batch_size: 4
    shuffle: true
    num_workers: 0
    pin_memory: true
    max_duration: 16.7
    min_duration: 0.1
    is_tarred: false
    tarred_audio_filepaths: null
  validation_ds:
    manifest_filepath: ???
    sample_rate: ${model.sample_rate}
    batch_size: 4
    shuffle: false
    num_workers: 0
  tokenizer: {dir: "???", type: bpe}
  preprocessor:
    _target_: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
    sample_rate: ${model.sample_rate}
    normalize: per_feature
    window_size: 0.025
    window_stride: 0.01
    window: hann
    features: 32
    n_fft: 512
    frame_splicing: 1
    dither: 0.00001
    pad_to: 0
  spec_augment:
    _target_: nemo.collections.asr.modules.SpectrogramAugmentation
    freq_masks: 2
    time_masks: 5
    freq_width: 8
    time_width: 0.05
  encoder:
    _target_: nemo.collections.asr.modules.ConformerEncoder
    feat_in: ${model.preprocessor.features}
    feat_out: -1
    n_layers: 1
    d_model: ${model.model_defaults.enc_hidden}
    subsampling: striding
    subsampling_factor: 4
    subsampling_conv_channels: 8
    n_heads: 2
    conv_kernel_size: 5
  decoder:
    _target_: nemo.collections.asr.modules.RNNTDecoder
    normalization_mode: null
    random_state_sampling: false
    blank_as_pad: true
    prednet: {pred_hidden: "${model.model_defaults.pred_hidden}", pred_rnn_layers: 1, t_max: null, dropout: 0.2}
  joint:
    _target_: nemo.collections.asr.modules.RNNTJoint
    log_softmax: null
    preserve_memory: false
    fuse_loss_wer: true
    fused_batch_size: 4
    jointnet: {joint_hidden: "${model.model_defaults.joint_hidden}", activation: relu, dropout: 0.2}
  decoding:
    strategy: greedy_batch
    greedy: {max_symbols: 10}
    beam: {beam_size: 2, return_best_hypothesis: false}
  loss:
    loss_name: default
    warprnnt_numba_kwargs: {fastemit_lambda: 0.0, clamp: -1.0}
  optim:
    name: adamw
    lr: 5.0
    betas: [0.9, 0.98]
    weight_decay: 1e-3
    sched: {name: NoamAnnealing, d_model: "${model.encoder.d_model}", warmup_steps: 10000, min_lr: 1e-6}
trainer:
  devices: 1
  num_nodes: 1
  max_epochs: 500
  max_steps: 2
  val_check_interval: 1.0
  accelerator: cpu
  strategy: auto
  accumulate_grad_batches: 1
  gradient_clip_val: 0.0
  precision: 32
  log_every_n_steps: 10
  enable_progress_bar: true
  num_sanity_val_steps: 0
  check_val_every_n_epoch: 1
  sync_batchnorm: true
  enable_checkpointing: false
  logger: false
  benchmark: false
exp_manager:
  exp_dir: null
  name: ${name}
  create_tensorboard_logger: true
  create_checkpoint_callback: true
  checkpoint_callback_params: {monitor: val_wer, mode: min, save_top_k: 5, always_save_nemo: true}
  resume_if_exists: false
  resume_ignore_no_checkpoint: false
"""


@pytest.fixture(scope="module", autouse=True)
def quickly(preloaded_python):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", preloaded_python)
        yield


@pytest.fixture(scope="module")
def digit_recordings(tmp_path_factory) -> Path:
    """A folder in the layout of the Free Spoken Digit Dataset, its digits being tones."""
    folder = tmp_path_factory.mktemp("recordings")
    recordings = folder / "recordings"
    recordings.mkdir(parents=True)
    time = np.arange(2400) / 8000
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in (0, 1, 5, 6, 10, 11):
                tone = 0.3 * np.sin(2 * np.pi * (300 + 150 * digit + take) * time)
                soundfile.write(recordings / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """An empty folder, outside the checkout."""
    return tmp_path_factory.mktemp("readme")


def run(command: list[str], folder: Path) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{shlex.join(command)}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


def script(command: list[str]) -> list[str]:
    return [sys.executable, str(REPOSITORY / command[1]), *command[2:]]


def codert(arguments: list[str]) -> None:
    """Run `codert` with these arguments in this process."""
    from nemo_codert.cli.main import main

    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert not status, f"codert {shlex.join(arguments)}: {status}"


def walk(text: str, longer: dict[str, list[str]], folder: Path, codert: Callable = codert) -> list[str]:
    """Run the commands of a text in their order and return those that were run, by their first two or three words.

    longer: start of a `codert` command -> what is appended to it. codert: runs one with its arguments.
    """
    done = []
    for words in shell_commands(text):
        command = shlex.join(words)
        if command.startswith(tuple(NOT_RUN)) or "..." in words:  # ...: part of a command, to be filled in
            continue
        if words[0] == "cp":
            shutil.copy(folder / words[1], folder / words[2])
        else:
            assert words[0] == "codert", f"{command} is neither run nor in NOT_RUN"
            added = [value for start, value in longer.items() if command.startswith(f"codert {start}")]
            codert([*words[1:], *(added[0] if added else [])])
        done.append(words[1] if words[0] == "codert" else words[0])
    return done


@pytest.mark.slow
def test_the_commands_on_connected_digits_run_as_written(tmp_path, digit_recordings, monkeypatch, capsys):
    (tmp_path / "FSDD").symlink_to(digit_recordings)
    monkeypatch.chdir(tmp_path)
    longer = {
        "prepare fsdd": ["--train-utterances", "12"],
        "train": SHORT,
        "analyze": ["--utterances", "1"],
        "benchmark": TINY_BENCHMARK,
    }
    own = TRAINING[TRAINING.index("\n## From a stock YAML\n") :]  # the section before it repeats the README's journey
    done = walk(own, longer, tmp_path)
    exports = ["evaluate", "export", "export", "benchmark"]
    assert done == ["configs", "configs", "prepare", "train", "analyze", *exports]
    out = capsys.readouterr().out
    assert "WER" in out and all(f"\n{part}: " in out for part in ("loss", "step", "decoding"))
    assert "ratios of this run" in out
    assert (tmp_path / "my_configs" / "fsdd.yaml").is_file()
    assert (tmp_path / "runs" / "logits" / "report.html").is_file()
    assert (tmp_path / "runs" / "benchmark" / "benchmark.csv").is_file()
    assert names_in(tmp_path / "onnx") == {"encoder-student.onnx", "decoder_joint-student.onnx"}


def test_what_is_not_run_is_shown():
    commands = [shlex.join(words) for text in (README, TRAINING) for words in shell_commands(text)]
    assert not [start for start in NOT_RUN if not any(command.startswith(start) for command in commands)]


@pytest.fixture(scope="module")
def digits(workplace, digit_recordings) -> dict[str, str]:
    """Overrides that name a prepared corpus whose first training utterance has an empty transcript."""
    data = workplace / "digits"
    prepare = ["python", "scripts/prepare_data.py", "fsdd", "--fsdd-dir", str(digit_recordings)]
    prepare += ["--output-dir", str(data)]
    run([*script(prepare), "--train-utterances", "12"], workplace)
    first, *others = [json.loads(line) for line in (data / "train.json").read_text().splitlines()]
    lines = [{**first, "text": ""}, *others]
    (data / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model.train_ds.manifest_filepath": str(data / "train.json"),
        "model.validation_ds.manifest_filepath": str(data / "dev.json"),
        "model.tokenizer.dir": str(data / "tokenizer"),
    }


@pytest.mark.slow
def test_a_teacher_trained_alone_teaches_a_static_student_on_two_devices(workplace, digits):
    common = [*SHORT, f"exp_manager.exp_dir={workplace / 'static'}", *(f"{k}={v}" for k, v in digits.items())]
    train = script(["python", "scripts/train.py", "--config-name=fsdd"])
    run([*train, "strategy=teacher", "exp_manager.name=teacher", *common], workplace)
    (teacher,) = workplace.glob("static/teacher/2*/teacher.nemo")
    static = ["strategy=static", "exp_manager.name=static", f"model.codert.teacher_checkpoint={teacher}"]
    run([*train, *static, "trainer.devices=2", "trainer.strategy=ddp", *common], workplace)
    (folder,) = (workplace / "static" / "static").glob("2*")  # one, and no file of the second process beside it
    assert {"train_ds_usable.json", "train_ds_dropped.json", "teacher_report.json"} <= names_in(folder)
    assert {"pair.nemo", "student.nemo"} <= names_in(folder)
    (dropped,) = [json.loads(line) for line in (folder / "train_ds_dropped.json").read_text().splitlines()]
    assert dropped["reason"] == "empty transcript"
    lists = {path.parent for path in (workplace / "static").rglob("*_dropped.json")}
    assert lists == {teacher.parent, folder}


@pytest.fixture(scope="module")
def shared_run(workplace, digits) -> Path:
    """Folder of a pair that shares its decoder, trained on two devices, with features that sherpa-onnx can compute."""
    front_end = ["model.preprocessor.window_stride=0.01", "model.preprocessor.highfreq=null"]
    common = [*SHORT, *front_end, f"exp_manager.exp_dir={workplace / 'ddp'}", *(f"{k}={v}" for k, v in digits.items())]
    train = script(["python", "scripts/train.py", "--config-name=fsdd", "strategy=shared_kd"])
    run([*train, "trainer.devices=2", "trainer.strategy=ddp", *common], workplace)
    (folder,) = (workplace / "ddp" / "fsdd").glob("2*")
    return folder


@pytest.mark.slow
def test_a_pair_that_shares_its_decoder_is_trained_on_two_devices(shared_run):
    assert {"pair.nemo", "student.nemo"} <= names_in(shared_run)


@pytest.mark.slow
def test_the_commands_for_sherpa_onnx_run_on_a_pair_whose_features_it_can_compute(
    workplace, shared_run, tmp_path, monkeypatch, capsys
):
    page = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    commands = [words[1:] for words in shell_commands(page) if words[0] == "codert"]
    (export,) = (words for words in commands if "sherpa-onnx" in words)
    verify, _ = (words for words in commands if words[0] == "verify" and "--checks" not in words)
    given = {
        "runs/pair/latest/pair.nemo": str(shared_run / "pair.nemo"),
        "data/test.json": str(workplace / "digits" / "test_seen.json"),
    }
    monkeypatch.chdir(tmp_path)
    codert([given.get(word, word) for word in export])
    assert {"encoder.onnx", "encoder.int8.onnx", "joiner.onnx", "tokens.txt"} <= names_in(tmp_path / "sherpa")
    if find_spec("sherpa_onnx"):
        codert([given.get(word, word) for word in verify])
        assert "| sherpa-onnx int8 |" in capsys.readouterr().out


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_stock_config_with_the_two_blocks_is_trained_from_its_own_folder(workplace, digits):
    folder = workplace / "configs"
    folder.mkdir()
    config = OmegaConf.create(STOCK_CONFIG)
    config.model.student = {"encoder": {**config.model.encoder, "d_model": 16}}
    config.model.codert = {"distillation": {"weight": 0.1}}
    OmegaConf.save(config, folder / "stock.yaml")
    train = ["python", "scripts/train.py", f"--config-path={folder}", "--config-name=stock"]
    overrides = [f"{key}={value}" for key, value in digits.items()]
    run([*script(train), *overrides, f"exp_manager.exp_dir={workplace / 'stock'}"], workplace)
    (run_folder,) = (workplace / "stock" / "stock-transducer").glob("2*")
    assert {"pair.nemo", "student.nemo"} <= names_in(run_folder)


@pytest.mark.slow
def test_a_pretrained_model_gives_its_own_config_and_tokenizer(tmp_path, digits, monkeypatch):
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create(STOCK_CONFIG)
    model = OmegaConf.merge(config.model, {"tokenizer": {"dir": digits["model.tokenizer.dir"]}})
    for name in ("train_ds", "validation_ds"):
        model.pop(name)
    EncDecRNNTBPEModel(model).save_to("teacher.nemo")
    new, _, train = (words[1:] for words in shell_commands(README) if words[-1] == "my_pair/" or "my_pair" in words)
    codert([*new, "--size", "1/2"])
    manifests = [f"{key}={value}" for key, value in digits.items() if "manifest" in key]
    codert([*train, *manifests, *FEW_STEPS])
    assert {"teacher_report.json", "student.nemo"} <= names_in(tmp_path / "runs" / "pair" / "latest")


def test_the_readme_is_short_and_has_both_commands_of_a_fresh_clone():
    assert len(README.splitlines()) <= 150
    targets = [words[1] for words in shell_commands(README) if words[0] == "make"]
    assert targets == ["quickstart", "test"]
