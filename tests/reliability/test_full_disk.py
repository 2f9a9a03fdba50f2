"""A disk that is full and a folder that is read-only, for real: a small file system of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nemo_codert.data.manifest import write_manifest
from nemo_codert.export.stock_file import export_onnx, save_model, save_with_card
from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.models.open_model import open_model
from nemo_codert.training.checkpoint_files import CheckpointFiles
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.reliability
RUN = [
    *("--config-name=quickstart", "strategy=shared_kd", "trainer.max_steps=12", "trainer.val_check_interval=2"),
    *("model.model_defaults.enc_hidden=48", "model.model_defaults.pred_hidden=64", "model.encoder.n_layers=1"),
    *("model.encoder.d_model=48", "model.student.encoder.n_layers=1", "model.student.encoder.d_model=32"),
    *("model.train_ds.batch_size=3", "model.validation_ds.batch_size=2", "model.optim.sched.warmup_steps=4"),
    *("trainer.enable_progress_bar=false", "hydra.run.dir=.", "hydra.output_subdir=null"),
]


class SmallDisk:
    """A file system of a few MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here ({done.stderr.strip()})")

    def room(self, size: int | None) -> None:
        """Leave `size` bytes free; None: all."""
        (self.folder / "filler").unlink(missing_ok=True)
        if size is None:
            return
        status = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as file:
            file.write(bytes(max(0, status.f_bavail * status.f_frsize - size)))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file() and path.name != "filler")


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "disk")
    small.folder.mkdir()
    small.mount("size=24m")
    yield small
    subprocess.run(["umount", str(small.folder)], check=True)


def writers(model, folder: Path) -> dict:
    """What writes into a run's folder: file -> call."""
    entries = [{"audio_filepath": "x.wav", "duration": 1.0, "text": "word " * 200} for _ in range(500)]
    return {
        "a.ckpt": lambda path: CheckpointFiles().save_checkpoint({"w": torch.ones(2**18)}, path),
        "pair.nemo": lambda path: save_model(model, path),
        "student.nemo": lambda path: save_with_card(model.student_model(), path, "card " * 1000),
        "manifest.json": lambda path: write_manifest(path, entries),
        "student.onnx": lambda path: export_onnx(model, path),
    }


def test_whatever_is_written_on_a_full_disk_is_one_error_and_no_file(make_model, disk, campaign):
    model, injected, survived = make_model(), 0, 0
    for name, write in writers(model, disk.folder).items():
        for size in (0, 8192, 65536):
            disk.room(size)
            injected += 1
            with pytest.raises(OSError, match=rf"{name} could not be written: No space left on device. Free some"):
                write(disk.folder / name)
            assert disk.files() == []
            survived += 1
        disk.room(None)
        write(disk.folder / name)
        kept = {path: path.read_bytes() for path in disk.folder.iterdir()}
        disk.room(8192)
        with pytest.raises(OSError, match="could not be written"):
            write(disk.folder / name)
        disk.room(None)
        assert {path: path.read_bytes() for path in disk.folder.iterdir()} == kept
        injected, survived = injected + 1, survived + 1
        for path in kept:
            path.unlink()
    campaign.record("disk full while a file is written", injected=injected, survived=survived, lost="that file alone")


def test_a_read_only_folder_is_one_error_and_its_files_stay(make_model, disk, campaign):
    model, ways = make_model(), {}
    for name, write in writers(model, disk.folder).items():
        write(disk.folder / name)
        ways[name] = write
    kept = {path: path.read_bytes() for path in disk.folder.iterdir()}
    disk.mount("remount,ro")
    survived = 0
    for name, write in ways.items():
        with pytest.raises(OSError) as error:
            write(disk.folder / name)
        assert "Read-only file system" in str(error.value) and str(disk.folder) in str(error.value)
        survived += 1
    assert {path: path.read_bytes() for path in disk.folder.iterdir()} == kept
    assert open_model(disk.folder / "pair.nemo") and read_checkpoint(disk.folder / "a.ckpt")
    campaign.record("read-only folder", injected=len(ways), survived=survived, lost="nothing that was there")


def train(folder: Path, manifest: Path, tokenizer_dir: Path) -> subprocess.CompletedProcess:
    """scripts/train.py in a process of its own."""
    given = {"train_ds.manifest_filepath": manifest, "validation_ds.manifest_filepath": manifest}
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *RUN, f"exp_manager.exp_dir={folder}"]
    command += [f"model.{key}={value}" for key, value in {**given, "tokenizer.dir": tokenizer_dir}.items()]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    place = folder.parent / "outside"  # Hydra's own files
    place.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=place, env={**os.environ, **threads}, capture_output=True, text=True)


def test_a_training_on_a_full_disk_ends_with_one_error_and_whole_checkpoints(
    disk, manifest, tokenizer_dir, tmp_path, campaign
):
    dev = tmp_path / "dev.json"  # NeMo names validation sets by their file and refuses `manifest`
    dev.write_text(manifest.read_text())
    whole = train(tmp_path / "whole", dev, tokenizer_dir)
    assert whole.returncode == 0, whole.stderr[-2000:]
    size, survived = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*.ckpt")), 0
    for checkpoints in (1, 2):  # the best and the last are kept, a third is written before the last is removed
        disk.room(int(size * (checkpoints + 0.5)) + 2**19)
        done = train(disk.folder, dev, tokenizer_dir)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "could not be written: No space left on device. Free some space" in line
        kept = list(disk.folder.rglob("*.ckpt"))
        assert kept and not list(disk.folder.rglob("*.part")) and not list(disk.folder.rglob(".writing_*"))
        assert all(read_checkpoint(path)["global_step"] > 0 for path in kept)
        survived += 1
        disk.room(None)
        shutil.rmtree(disk.folder / "quickstart")
    lost = "steps since the last checkpoint; all earlier ones load"
    campaign.record("disk full in a training", injected=2, survived=survived, lost=lost)
