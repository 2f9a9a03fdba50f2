"""Targets of trained teachers: what is stored is what the teachers say, alone and mixed, whatever the batches."""

import json
import shutil

import numpy as np
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_codert.cli.cache import main
from nemo_codert.data.target_cache import TargetCache
from nemo_codert.data.target_header import read_header
from nemo_codert.evaluation.target_caching import CacheSettings, cache_targets, shard_plan
from nemo_codert.evaluation.target_teachers import mixture, mixture_weights, open_teacher
from nemo_codert.losses import encoder_distillation_loss
from tests.conftest import conformer
from tests.models.teacher_files import save_teacher

NAMES = [f"{i}.wav" for i in range(8)]


@pytest.fixture(scope="module")
def teachers(make_config, tmp_path_factory) -> list[str]:
    """Two hybrid teachers of different widths, and a CTC model."""
    files = []
    for seed, channels in ((7, 24), (8, 32)):
        folder = tmp_path_factory.mktemp("teacher")
        files.append(save_teacher(make_config, folder, "hybrid", seed, teacher=conformer(2, channels))[0])
    return files


def cached(teachers, manifest, folder, **settings) -> TargetCache:
    given = {"dtype": "float32", "progress": False, "batch_size": 3, **settings}
    cache_targets(CacheSettings(tuple(teachers), manifest, folder / "targets", **given))
    return TargetCache(folder / "targets")


def expected_probabilities(path: str, line: dict, place: str, prior: bool = False) -> torch.Tensor:
    """[T, V+1] of one utterance by itself, from NeMo's own model."""
    import soundfile

    teacher = open_teacher(path)
    samples = torch.from_numpy(soundfile.read(line["audio_filepath"], dtype="float32")[0])[None]
    with torch.no_grad():
        encoded, lengths = teacher.encode(samples, torch.tensor([samples.shape[1]]))
        logits = teacher.logits(encoded, lengths, place, [line["text"]] if prior else None)
    return logits[0, : int(lengths[0])].softmax(-1)


def spread(frames: np.ndarray, classes: int) -> torch.Tensor:
    dense = torch.zeros(len(frames), classes)
    return dense.scatter_(
        1, torch.from_numpy(frames["ids"].astype("int64")), torch.from_numpy(frames["probabilities"].copy())
    )


@pytest.mark.parametrize(("place", "prior"), [("encoder", "none"), ("encoder", "mean_prediction"), ("ctc", "none")])
def test_all_classes_of_one_teacher_are_its_distribution(teachers, manifest, tmp_path, place, prior):
    cache = cached(teachers[:1], manifest, tmp_path, keep="top_k=all", at=place, prior=prior)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(cache) == 8 and cache.header.k == cache.header.classes == 33
    for line in lines[::3]:
        folder = line["audio_filepath"].split("/")[-2:]
        frames = cache.read("/".join(folder))
        wanted = expected_probabilities(teachers[0], line, place, prior != "none")
        assert frames.shape == (len(wanted),)
        assert (spread(frames, 33) - wanted).abs().max() < 1e-6


def test_encoder_output_is_stored_as_it_is(teachers, manifest, tmp_path):
    cache = cached(teachers[:1], manifest, tmp_path, keep="encoder")
    assert (cache.header.width, cache.header.layers, cache.header.stride) == (24, 2, 4)
    whole = cached(teachers[:1], manifest, tmp_path / "other", keep="encoder", batch_size=8)
    name = f"{manifest.parent.name}/5.wav"
    assert np.abs(cache.read(name) - whole.read(name)).max() < 1e-5


def test_a_mixture_is_the_weighted_mean_and_eight_classes_are_its_likeliest(teachers, manifest, tmp_path):
    settings = {"at": "ctc", "combine": "mean"}
    cache = cached(teachers, manifest, tmp_path, keep="top_k=8", **settings)
    line = json.loads(manifest.read_text().splitlines()[4])
    wanted = sum(0.5 * expected_probabilities(path, line, "ctc") for path in teachers)
    frames = cache.read(f"{manifest.parent.name}/4.wav")
    values, ids = wanted.topk(8, dim=-1)
    assert np.abs(frames["probabilities"] - values.numpy()).max() < 1e-6
    assert (np.sort(frames["ids"], -1) == np.sort(ids.numpy(), -1)).mean() > 0.99
    assert [teacher.share for teacher in cache.header.teachers] == [0.5, 0.5]
    assert all(teacher.wer > 0 for teacher in cache.header.teachers)  # a CTC head's text costs nothing more


def test_an_interrupted_run_keeps_its_finished_shards(teachers, manifest, tmp_path, monkeypatch):
    whole = cached(teachers[:1], manifest, tmp_path / "whole")
    from nemo_codert.evaluation import target_caching

    write, calls = target_caching.Runner.write, []

    def killed(self, writer, number, *progress):
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, writer, number, *progress)

    monkeypatch.setattr(target_caching.Runner, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(teachers[:1], manifest, tmp_path)
    resumed = cached(teachers[:1], manifest, tmp_path)
    assert calls == [0, 1, 2, 3, 3, 4, 5, 6, 7] and resumed.header == whole.header


def test_processes_share_the_shards(teachers, manifest, tmp_path, preloaded_spawn):
    whole = cached(teachers[:1], manifest, tmp_path / "whole")
    shared = cached(teachers[:1], manifest, tmp_path, jobs=2)
    assert shared.header.settings() == whole.header.settings() and len(shared) == 8
    for name in NAMES:
        name = f"{manifest.parent.name}/{name}"
        assert np.abs(shared.read(name)["probabilities"] - whole.read(name)["probabilities"]).max() < 1e-6


def test_the_command_prints_teachers_and_size(teachers, manifest, tmp_path, capsys):
    options = ["--teachers", *teachers, "--manifest", str(manifest), "--prior", "mean_prediction", "--combine", "best"]
    assert main([*options, "--output", str(tmp_path / "targets")]) == 0
    printed = capsys.readouterr().out
    assert "8 utterances" in printed and "hybrid.nemo" in printed
    header = read_header(tmp_path / "targets")
    assert header.combine == "best" and abs(sum(teacher.share for teacher in header.teachers) - 1) < 1e-12


def test_a_ctc_model_teaches_by_its_head_and_an_encoder_of_another_rate_in_groups(
    teachers, make_config, manifest, tokenizer_dir, tmp_path
):
    cfg = OmegaConf.create(
        {
            **{key: make_config()[key] for key in ("sample_rate", "preprocessor", "tokenizer", "optim")},
            "encoder": conformer(1, 16, subsampling=2),
            "decoder": {
                "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
                "feat_in": 16,
                "num_classes": -1,
                "vocabulary": [],
            },
        }
    )
    torch.manual_seed(0)
    EncDecCTCModelBPE(cfg).save_to(str(tmp_path / "ctc.nemo"))
    cache = cached([teachers[0], tmp_path / "ctc.nemo"], manifest, tmp_path, at="ctc")
    assert cache.header.frame_seconds == pytest.approx(0.04)  # the slowest teacher's
    alone = cached([tmp_path / "ctc.nemo"], manifest, tmp_path / "alone", at="ctc", group=2)
    name = f"{manifest.parent.name}/4.wav"
    assert abs(alone.frames(name) - cache.frames(name)) <= 1
    with pytest.raises(ValueError, match="ctc.nemo is not an RNN-T"):
        cached([tmp_path / "ctc.nemo"], manifest, tmp_path / "none")


REFUSED = {
    "an unknown kind": ({"keep": "all"}, "`keep` is 'all'"),
    "no class": ({"keep": "top_k=0"}, "`keep` is 'top_k=0'"),
    "encoders of several": ({"keep": "encoder", "teachers": ("a", "b")}, "`keep` is encoder but there are several"),
    "logits of several": ({"teachers": ("a", "b")}, "need `prior` mean_prediction"),
    "a prior at a head": ({"at": "ctc", "prior": "mean_prediction"}, "`prior` is mean_prediction but `at` is ctc"),
    "no temperature": ({"temperature": 0.0}, "`temperature` is 0.0"),
    "weights of one": ({"combine": "wer"}, "`combine` is wer but there is one teacher"),
    "a temperature of an encoder": ({"keep": "encoder", "temperature": 2.0}, "`temperature` is for top_k"),
    "no process": ({"jobs": 0}, "`jobs` is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_contradict_each_other_are_refused_before_a_model_is_opened(case):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        CacheSettings(**{"teachers": ("a",), "manifest": "m", "output": "o", **changes}).check()


def test_two_utterances_of_one_id_and_more_classes_than_there_are_are_refused(teachers, manifest, tmp_path):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    shutil.copy(lines[0]["audio_filepath"], tmp_path / "0.wav")
    lines[1]["id"] = lines[0]["id"] = "same"
    path = tmp_path / "twice.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="two utterances have the id 'same'"):
        cached(teachers[:1], path, tmp_path)
    with pytest.raises(ValueError, match="`keep` is top_k=34 but there are 33 classes"):
        cached(teachers[:1], manifest, tmp_path, keep="top_k=34")


@pytest.mark.parametrize("combine", ["wer", "best"])
def test_weights_by_word_errors_need_a_text_of_every_utterance(teachers, manifest, tmp_path, combine):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    del lines[3]["text"]
    path = tmp_path / "half.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = (
        f"`combine` is {combine} but 1 utterances have no transcript .*/3.wav.* Set it to mean, or leave these lines"
    )
    with pytest.raises(ValueError, match=message):
        cached(teachers, path, tmp_path, prior="mean_prediction", combine=combine)
    assert not (tmp_path / "targets").exists()


@pytest.mark.unit
def test_weights_are_speechbrains_rule_for_a_batch_of_one():
    """recipes/TIMIT/ASR/seq2seq_knowledge_distillation: w = softmax(100 - WER) of the teachers, in percent."""
    rates = np.array([0.12, 0.10, 0.25])
    exponentials = np.exp((100 - 100 * rates) - (100 - 100 * rates).max())
    assert np.allclose(mixture_weights(rates, "wer"), exponentials / exponentials.sum(), atol=1e-15)
    assert mixture_weights(rates, "best").tolist() == [0, 1, 0]
    assert mixture_weights([0.1, 0.1], "best").tolist() == [1, 0]
    assert np.allclose(mixture_weights(rates, "mean"), 1 / 3)


@pytest.mark.unit
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_mixture_has_the_gradient_of_the_teachers_weighted_divergences(temperature):
    lengths = torch.tensor([5, 3])
    logits = [torch.randn(2, 5, 7, dtype=torch.float64) * 3 for _ in "abc"]
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], dtype=torch.float64)
    student = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    how = {"student_logits": student, "lengths": lengths, "temperature": temperature}
    mixed, length = mixture(logits, [lengths] * 3, [1] * 3, weights, temperature)
    assert length.tolist() == lengths.tolist()
    [of_mixture] = torch.autograd.grad(
        encoder_distillation_loss(teacher_logits=temperature * mixed.log(), **how), student
    )
    of_teachers = torch.zeros_like(student)
    for k, each in enumerate(logits):
        for b in range(2):
            one = {**how, "student_logits": student[b : b + 1], "lengths": lengths[b : b + 1]}
            loss = encoder_distillation_loss(teacher_logits=each[b : b + 1], **one) / 2
            of_teachers += weights[b, k] * torch.autograd.grad(loss, student)[0]
    assert (of_mixture - of_teachers).abs().max() < 1e-12


def test_a_plan_holds_every_utterance_once():
    entries = [{"duration": 10.0 + i % 7} for i in range(1000)]
    plan = shard_plan(entries)
    assert sorted(place for part in plan for place in part) == list(range(1000)) and 8 <= len(plan) <= 500
    assert len(shard_plan(entries[:3])) == 3
