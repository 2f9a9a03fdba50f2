"""Runs on data as NeMo's users have them: other sample rates, augmentation, weighted lists, texts of any script."""

import json
import logging

import numpy as np
import pytest
import sentencepiece
import soundfile
from lhotse.cut import MixedCut
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.preprocessing.perturb import NoisePerturbation, WhiteNoisePerturbation

from nemo_codert.data.manifest import write_manifest
from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.training.run import train
from tests.conftest import tone
from tests.training.run_configs import SMALL

STEPS = ["trainer.max_steps=2", "trainer.val_check_interval=2", "model.train_ds.batch_size=4", "strategy=shared_kd"]
# One text a kind: accents composed and decomposed, right to left, without spaces, with punctuation and capitals.
TEXTS = [
    "caf\u00e9 \u00e9t\u00e9",
    "cafe\u0301 e\u0301te\u0301",
    "שלום עולם",
    "مرحبا بالعالم",
    "今天天气很好",
    "Hello, World! It's 5.",
]


def corpus(folder, rate: int, texts: list[str] | None = None, count: int = 8):
    """A manifest of tones at that rate, 0.8 to 1.5 s long."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        audio = tone(0.8 + 0.1 * i, seed=i)
        audio = np.interp(np.arange(int(len(audio) * rate / 16000)) * 16000 / rate, np.arange(len(audio)), audio)
        soundfile.write(folder / f"{i}.wav", audio, rate)
        text = texts[i % len(texts)] if texts else ["turn the light on", "open the red door now"][i % 2]
        lines.append({"audio_filepath": str(folder / f"{i}.wav"), "duration": len(audio) / rate, "text": text})
    return write_manifest(folder / "data.json", lines)


@pytest.fixture
def small_train(run_config, manifest, tmp_path):
    """Trains two steps of tiny networks and returns what the run left."""
    dev = tmp_path / "dev.json"  # NeMo refuses the name manifest.json
    dev.write_text(manifest.read_text())

    def make(*overrides):
        done = train(run_config(f"model.validation_ds.manifest_filepath={dev}", *SMALL, *STEPS, *overrides))
        assert done.trainer.global_step == 2
        return done

    return make


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("lhotse", ["false", "true"])
def test_audio_of_other_rates_is_resampled_by_both_loaders(rate, lhotse, small_train, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    data = corpus(tmp_path / "data", rate)
    paths = [f"model.{name}_ds.manifest_filepath={data}" for name in ("train", "validation")]
    done = small_train(*paths, f"model.train_ds.use_lhotse={lhotse}")
    student = ASRModel.restore_from(str(done.folder / "student.nemo"), map_location="cpu")
    assert (
        len(student.transcribe([json.loads(data.read_text().splitlines()[0])["audio_filepath"]], verbose=False)) == 1
    )


@pytest.mark.parametrize(("rate", "n_fft"), [(8000, 256), (44100, 2048), (48000, 2048)])
def test_a_model_may_have_another_rate(rate, n_fft, small_train, tmp_path):
    data = corpus(tmp_path / "data", rate)
    paths = [f"model.{name}_ds.manifest_filepath={data}" for name in ("train", "validation")]
    features = [f"model.sample_rate={rate}", f"model.preprocessor.n_fft={n_fft}", "model.preprocessor.highfreq=null"]
    done = small_train(*paths, *features)
    student = ASRModel.restore_from(str(done.folder / "student.nemo"), map_location="cpu")
    assert student.cfg.preprocessor.sample_rate == rate == student.cfg.sample_rate


def test_a_window_longer_than_n_fft_is_refused_by_key(small_train):
    with pytest.raises(ValueError, match=r"model\.preprocessor fails in use: RuntimeError: stft"):
        small_train("model.sample_rate=48000", "model.preprocessor.highfreq=null")


def calls_of(monkeypatch, kind: type, name: str) -> list:
    """Record the calls of a method, which still works."""
    calls, method = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *args, **kwargs: calls.append(args) or method(*args, **kwargs))
    return calls


def test_the_augmentor_of_the_classic_loader_adds_noise(small_train, manifest, monkeypatch):
    calls = [calls_of(monkeypatch, kind, "perturb") for kind in (NoisePerturbation, WhiteNoisePerturbation)]
    noise = f"{{prob: 1.0, manifest_path: {manifest}, min_snr_db: 0, max_snr_db: 10}}"
    white = "{prob: 1.0, min_level: -40, max_level: -30}"
    small_train(
        f"+model.train_ds.augmentor={{noise: {noise}, white_noise: {white}}}", "model.train_ds.use_lhotse=false"
    )
    assert all(len(made) >= 8 for made in calls)  # 2 batches of 4


def test_lhotse_mixes_noise(small_train, manifest, monkeypatch):
    mixed = calls_of(monkeypatch, MixedCut, "load_audio")
    noise = [f"noise_path={manifest}", "noise_snr=[0,10]", "noise_mix_prob=1.0"]
    small_train("model.train_ds.use_lhotse=true", *(f"+model.train_ds.{setting}" for setting in noise))
    assert len(mixed) >= 8  # 2 batches of 4


def test_several_validation_sets_are_each_measured(small_train, manifest, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(manifest.read_text()), second.write_text(manifest.read_text())
    done = small_train(f"model.validation_ds.manifest_filepath=[{first},{second}]")
    assert {"val_wer", "second_val_wer"} & set(map(str, done.trainer.callback_metrics))


def test_texts_of_any_script_are_trained_and_measured_alike(small_train, tmp_path):
    data = corpus(tmp_path / "data", 16000, TEXTS, count=6)
    tokenizer = train_tokenizer(TEXTS, tmp_path / "tokenizer", vocab_size=60)
    paths = [f"model.{name}_ds.manifest_filepath={data}" for name in ("train", "validation", "test")]
    done = small_train(*paths, f"model.tokenizer.dir={tokenizer}", "+model.use_cer=true")
    lines = [json.loads(line) for line in (done.folder / "predictions/student/data.json").read_text().splitlines()]
    assert len(lines) == 6 and all("pred_text" in line for line in lines)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer" / "tokenizer.model"))
    assert processor.unk_id() not in processor.encode(TEXTS[0])
