"""Every fault that data can have, at once, in real trainings: each counted and named, none crashing the run."""

import json
import os
import subprocess
import sys
import time

import pytest
import soundfile
import torch

from nemo_codert.data import screen_manifest
from nemo_codert.models.open_model import open_model
from tests.conftest import REPOSITORY, SAMPLE_RATE, tone
from tests.reliability.dirty_corpus import GOOD, dirty_corpus
from tests.reliability.small_runs import SMALL

pytestmark = pytest.mark.reliability
STEPS = 6
LOADERS = ("lhotse", "classic")


def start(folder, corpus, manifest, tokenizer_dir, *overrides: str) -> subprocess.CompletedProcess:
    """A run of scripts/train.py on the dirty corpus that validates on a clean one."""
    lhotse, classic = str(corpus.lhotse).lower(), str(not corpus.lhotse).lower()
    dev = corpus.folder / "dev.json"  # a name that NeMo accepts
    dev.write_text(manifest.read_text())
    given = [
        f"model.train_ds.manifest_filepath={corpus.write()}",
        f"model.validation_ds.manifest_filepath={dev}",
        f"model.tokenizer.dir={tokenizer_dir}",
        f"model.train_ds.use_lhotse={lhotse}",
        f"trainer.use_distributed_sampler={classic}",
        f"exp_manager.exp_dir={folder}",
        "exp_manager.name=run",
        "+exp_manager.version=v",
        f"trainer.max_steps={STEPS}",
        f"trainer.val_check_interval={STEPS}",
        *SMALL,
        *overrides,
    ]
    return subprocess.run(
        [sys.executable, "scripts/train.py", "--config-name=fsdd", *given],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def counts(groups: list[dict]) -> dict[str, int]:
    return {group["reason"]: group["count"] for group in groups}


@pytest.mark.parametrize("loader", LOADERS)
def test_drop_counts_and_names_every_fault_and_trains_on_the_rest(loader, manifest, tokenizer_dir, campaign, tmp_path):
    corpus = dirty_corpus(tmp_path, lhotse=loader == "lhotse")
    done = start(tmp_path / "runs", corpus, manifest, tokenizer_dir)
    folder = tmp_path / "runs" / "run" / "v"
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "data_report.json").read_text())
    found = report["manifests"][0]
    outcome = {kind: counts(found[kind]) for kind in ("dropped", "left_out", "noticed")}
    expected = {kind: dict(getattr(corpus, kind)) for kind in outcome}
    trained = open_model(folder / "pair.nemo")
    finite = all(torch.isfinite(value).all() for value in trained.state_dict().values())
    survived = outcome == expected and finite
    campaign.record(
        f"dirty data, {loader} loader, drop",
        injected=corpus.faults,
        survived=corpus.faults * survived,
        lost=f"{corpus.dropped.total()} faulty utterances, each named; {corpus.left_out.total()} beyond the limits",
    )
    assert outcome == expected and finite
    assert found["usable"] == len(corpus.lines) - corpus.dropped.total() - corpus.left_out.total() > GOOD
    assert report["loading"]["lost"] == 0 and report["loading"]["arrived"] >= 3 * STEPS
    for reason in expected["dropped"]:
        assert f"dropped: {reason}" in done.stdout + done.stderr


@pytest.mark.parametrize("loader", LOADERS)
def test_refuse_stops_with_the_count_before_anything_is_trained(loader, manifest, tokenizer_dir, campaign, tmp_path):
    corpus = dirty_corpus(tmp_path, lhotse=loader == "lhotse")
    done = start(tmp_path / "runs", corpus, manifest, tokenizer_dir, "model.codert.bad_utterances=refuse")
    # Bad lines are refused first of all, by number; then the rest.
    assert done.returncode == 1 and "train.json:" in done.stderr and "not JSON" in done.stderr
    corpus.lines = [line for line in corpus.lines if line.startswith(b'{"audio_filepath": "') and is_sound(line)]
    done = start(tmp_path / "runs", corpus, manifest, tokenizer_dir, "model.codert.bad_utterances=refuse")
    of_lines = sum(count for reason, count in corpus.dropped.items() if reason.startswith("manifest line"))
    wanted = corpus.dropped.total() - of_lines
    survived = done.returncode == 1 and f"{wanted} of {len(corpus.lines)} utterances cannot be used" in done.stderr
    campaign.record(
        f"dirty data, {loader} loader, refuse", injected=2, survived=1 + survived, lost="nothing: it does not start"
    )
    assert survived, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and not list((tmp_path / "runs").rglob("*.ckpt"))


def test_a_hundred_thousand_lines_are_validated_in_seconds(campaign, tmp_path):
    """Stretches of 1,000 files: 4-5 s of one core. Every further FLAC file takes 0.2 ms (header and end)."""
    lines = []
    soundfile.write(tmp_path / "0.flac", tone(21.0, seed=0), SAMPLE_RATE)
    for i in range(1000):
        if i:
            os.link(tmp_path / "0.flac", tmp_path / f"{i}.flac")
        lines += [
            json.dumps({"audio_filepath": f"{i}.flac", "duration": 0.2, "offset": k / 5, "text": f"a {i} {k}"})
            for k in range(100)
        ]
    lines[77_776] = "{"
    (tmp_path / "large.json").write_text("".join(line + "\n" for line in lines))
    begun = time.process_time()
    how = {"tokenize": str.split, "seconds_per_frame": 0.04, "audio_check": "headers", "progress": False}
    found = screen_manifest(tmp_path / "large.json", **how)
    seconds = time.process_time() - begun
    survived = len(found.usable) == 99_999 and [line["line"] for line in found.dropped] == [77_777]
    lost = f"the one bad line; {seconds:.0f} s of one core"
    campaign.record("a bad line among 100,000", injected=1, survived=int(survived), lost=lost)
    assert survived and seconds < 60


def is_sound(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    number = isinstance(entry.get("duration"), float) and entry["duration"] == entry["duration"]
    return number and isinstance(entry.get("text"), str)
