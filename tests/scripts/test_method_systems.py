"""Every system of docs/methods.md from the command line: trained, saved, resumed, exported and evaluated."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from nemo_codert.files.checkpoints import read_checkpoint
from tests.conftest import REPOSITORY

LAYERS = {"encoder": 3, "student.encoder": 2}  # as in conf/fsdd.yaml, whose layers the strategies name
TINY = [
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "model.train_ds.batch_size=4",
    "model.model_defaults.enc_hidden=16",
    "model.model_defaults.pred_hidden=16",
    "model.preprocessor.features=32",
    "model.preprocessor.highfreq=null",
    "model.preprocessor.window_stride=0.01",
    *(f"model.{name}.n_heads=1" for name in LAYERS),
    *(f"model.{name}.d_model=16" for name in LAYERS),
]
FROZEN = ["model.codert.teacher_checkpoint=teacher.nemo"]
HEARS = ["model.codert.student_hears.noise=train.json"]
STAGES = ["model.codert.distillation.hidden.until_step=2"]  # the boundary is where the run is resumed
MIXED = ["model.train_ds.manifest_filepath=mixed/mixed.json"]
MIX = ["--enrollment", "0.3", "--sir", "-5", "5", "--output-dir", "mixed"]
# An untrained teacher gives a token a frame, and the student takes no utterance with more: it has twice the frames.
LABELS = ["model.train_ds.manifest_filepath=[train.json,labels.json]", "model.preprocessor.window_stride=0.005"]
CACHE = ["codert cache", "--batch-size", "4", "--output"]
SCRIPTS = {"codert cache": "cache_teacher", "codert prepare": "prepare_data", "codert pseudo-label": "pseudo_label"}
# System: strategy, overrides of its training, and the commands before it.
SYSTEMS = {
    "ensemble": (
        "cached",
        ["model.codert.teacher_cache=mixed_targets"],
        [[*CACHE, "mixed_targets", "--teachers", "teacher.nemo", "second.nemo", "--manifest", "train.json",
          "--combine", "wer", "--prior", "mean_prediction"]],
    ),
    "target speaker": (
        "target_speaker",
        ["model.codert.teacher_cache=targets", *FROZEN, *MIXED],
        [["codert prepare", "mixtures", "--manifest", "train.json", *MIX],
         [*CACHE, "targets", "--teachers", "teacher.nemo", "--keep", "encoder", "--manifest", "mixed/clean.json"]],
    ),
    "Inter-KD": ("inter_kd", ["model.codert.teacher_checkpoint=hybrid.nemo"], []),
    "two stages": ("two_stage", [*FROZEN, *STAGES], []),
    "correlation": ("noise_robust", [*FROZEN, *HEARS], []),
    "feature measures": ("features", FROZEN, []),
    "one-best path": ("one_best", FROZEN, []),
    "collapsed lattice": ("collapsed", FROZEN, []),
    "full lattice": ("static_joint", FROZEN, []),
    "full lattice, co-trained": ("shared_joint", [], []),
    "occupied nodes": ("static_occupied", FROZEN, []),
    "encoder with prior": ("static_prior", FROZEN, []),
    "mean teacher": ("ema", [], []),
    "two views": ("two_views", [], []),
    "pseudo-labels": (
        "student",
        LABELS,
        [["codert pseudo-label", "--model", "teacher.nemo", "--manifest", "unlabelled.json", "--output", "labels.json",
          "--min-confidence", "0.0"]],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, manifest, tokenizer_dir, preloaded_python):
    """A folder with manifests of two speakers and the files of three untrained teachers, and a way to run commands."""
    from hydra import compose, initialize_config_dir
    from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
    from omegaconf import OmegaConf, open_dict

    from nemo_codert.models import teacher_config
    from tests.models.teacher_files import CTC, NO_DATA

    folder = tmp_path_factory.mktemp("systems")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for place, line in enumerate(lines):
        line["speaker"] = f"speaker{place % 2}"
    write = {"train": lines, "dev": lines[:4], "test": lines[4:]}
    write["unlabelled"] = [{key: line[key] for key in line if key != "text"} for line in lines[:4]]
    for name, content in write.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in content))
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        cfg = compose("fsdd", ["strategy=static", *TINY, f"model.tokenizer.dir={tokenizer_dir}"]).model
    with open_dict(cfg):
        cfg.train_ds = cfg.validation_ds = cfg.test_ds = None
        cfg.decoding.greedy.max_symbols = 1  # an untrained teacher's text is then not longer than its audio
    stock = teacher_config(cfg)
    for seed, (name, kind) in enumerate({"teacher": {}, "second": {}, "hybrid": CTC}.items()):
        torch.manual_seed(seed)
        model = EncDecHybridRNNTCTCBPEModel if kind else EncDecRNNTBPEModel
        model(OmegaConf.merge(stock, kind, {"validation_ds": NO_DATA})).save_to(str(folder / f"{name}.nemo"))

    def run(script: str, *arguments: str) -> str:
        path = REPOSITORY / "scripts" / f"{SCRIPTS.get(script, script)}.py"
        command = [preloaded_python, str(path), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    run.folder, run.tokenizer = folder, tokenizer_dir
    return run


QUICK = ["ensemble", "target speaker", "two stages"]  # the others take two minutes, in `make test-reliability`
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.reliability) for name in SYSTEMS]


@pytest.mark.parametrize("system", CASES)
def test_a_system_trains_saves_resumes_exports_and_evaluates(system, corpus):
    strategy, overrides, before = SYSTEMS[system]
    for command in before:
        corpus(*command)
    data = [f"model.{part}_ds.manifest_filepath={part}.json" for part in ("train", "test")]
    data = [word for word in data if not any(word.partition("=")[0] in other for other in overrides)]
    name = system.replace(" ", "_").replace(",", "")
    run = ["--config-name=fsdd", f"strategy={strategy}", *TINY, *data]
    run += ["model.validation_ds.manifest_filepath=dev.json"]
    run += [f"model.tokenizer.dir={corpus.tokenizer}", "exp_manager.exp_dir=runs", f"exp_manager.name={name}"]
    run += ["exp_manager.resume_if_exists=true", "trainer.val_check_interval=2", *overrides]
    corpus("train", *run, "trainer.max_steps=2")
    corpus("train", *run, "trainer.max_steps=4")
    folder = corpus.folder / "runs" / name
    assert max(read_checkpoint(path)["global_step"] for path in (folder / "checkpoints").glob("*.ckpt")) == 4
    file = "lone_student.nemo" if strategy == "student" else "pair.nemo"
    corpus("export_student", "--model", f"runs/{name}/{file}", "--output", f"{name}.nemo")
    corpus("evaluate", "--model", f"{name}.nemo", "--manifest", "test.json", "--output", f"{name}.json")
    texts = [json.loads(line) for line in Path(corpus.folder / f"{name}.json").read_text().splitlines()]
    assert len(texts) == 4 and all("pred_text" in line for line in texts)
