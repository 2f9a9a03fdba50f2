"""Audio too long for full attention is refused before its memory is allocated."""

import json
import os
import resource

import pytest
import soundfile
import torch
from nemo.collections.asr.modules import ConformerEncoder
from omegaconf import OmegaConf

from nemo_codert.benchmark.measure import peak_memory
from nemo_codert.benchmark.trained_models import EvaluationSettings, evaluate_models
from nemo_codert.evaluation import long_audio
from nemo_codert.evaluation.long_audio import TooLong, attention_bytes, refuse_without_memory, total_memory
from nemo_codert.evaluation.pseudo_labels import PseudoLabelSettings, pseudo_label
from nemo_codert.evaluation.transcribe import evaluate, warm_up
from nemo_codert.export.stock_file import save_model
from tests.conftest import SAMPLE_RATE, conformer, lstm

FULL = OmegaConf.create({"self_attention_model": "rel_pos", "n_heads": 4, "subsampling_factor": 8})
HUNDREDTHS = OmegaConf.create({"window_stride": 0.01})
NEMO = "nemo.collections.asr.modules"


def test_the_memory_is_that_of_the_largest_batch():
    frames = 100.0 / 0.08
    assert attention_bytes(FULL, HUNDREDTHS, [100.0], 16) == 7 * 4 * 4 * frames**2
    assert attention_bytes(FULL, HUNDREDTHS, [1.0, 100.0, 2.0], 2) == 2 * 7 * 4 * 4 * frames**2  # the first two
    assert (
        attention_bytes(FULL, OmegaConf.create({"window_stride": 0.02}), [100.0], 1) == 7 * 4 * 4 * (frames / 2) ** 2
    )
    assert attention_bytes(FULL, HUNDREDTHS, [], 16) == 0


@pytest.mark.parametrize("encoder, matrices", [
    ({"self_attention_model": "rel_pos"}, 7),
    ({"self_attention_model": "rel_pos", "use_pytorch_sdpa": True}, 4),
    ({"self_attention_model": "abs_pos"}, 4),
    ({"self_attention_model": "abs_pos", "use_pytorch_sdpa": True}, 0),
    ({"self_attention_model": "rel_pos_local_attn"}, 0),
    ({"_target_": f"{NEMO}.ConformerEncoder"}, 7),  # its default
    (lstm(), 0),
])  # fmt: skip
def test_the_kind_of_attention_decides_the_matrices(encoder, matrices):
    block = OmegaConf.create({"n_heads": 2, "subsampling_factor": 4, **encoder})
    assert attention_bytes(block, HUNDREDTHS, [40.0], 1) == matrices * 4 * 2 * 1000**2


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [
    {"self_attention_model": "rel_pos"},
    {"self_attention_model": "rel_pos", "use_pytorch_sdpa": True},
    {"self_attention_model": "abs_pos"},
], ids=lambda encoder: "_".join(map(str, encoder.values())))  # fmt: skip
def test_the_estimate_is_what_nemos_encoder_takes(encoder):
    block = {**conformer(layers=1, channels=16, subsampling=8), "n_heads": 4, **encoder}
    module = ConformerEncoder(**{key: value for key, value in block.items() if key != "_target_"}).eval()

    def encode():
        with torch.no_grad():
            module(audio_signal=torch.zeros(1, 32, 24000), length=torch.tensor([24000]))  # 240 s

    estimate = attention_bytes(OmegaConf.create(block), HUNDREDTHS, [240.0], 1)
    assert 0.9 < peak_memory(encode).peak / estimate < 1.25


def test_the_memory_of_the_machine_is_within_the_limit_of_its_control_group(tmp_path, monkeypatch):
    whole = total_memory()
    assert whole > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(long_audio, "CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "absent")))
    (tmp_path / "memory.max").write_text("1000000\n")
    assert total_memory() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert total_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >= whole


@pytest.mark.parametrize(
    "gigabytes, way_out",
    [
        (1.0, "there are 1 GB. Either take a batch size of 3 or less, or cut the audio at pauses, or stream it"),
        (0.1, "there are 0.1 GB. Either cut the audio at pauses, or stream it in chunks (codert stream)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_ways_out(monkeypatch, gigabytes, way_out):
    monkeypatch.setattr(long_audio, "total_memory", lambda device: int(gigabytes * 1e9))
    entries = [{"audio_filepath": f"{i}.wav", "duration": 130.0 + i} for i in range(4)]
    refuse_without_memory(OmegaConf.create(lstm()), HUNDREDTHS, entries, 4)
    with pytest.raises(TooLong) as error:
        refuse_without_memory(FULL, HUNDREDTHS, entries, 4)
    assert str(error.value).startswith("3.wav lasts 133 s: full attention over the batches of 4 needs some 1.24 GB, ")
    assert way_out in str(error.value)


@pytest.fixture
def long_and_short(tmp_path):
    """Manifests of one utterance of a second and of one of 70 s."""
    paths = []
    for name, seconds in (("short", 1), ("long", 70)):
        soundfile.write(tmp_path / f"{name}.wav", [0.0, 0.1] * (SAMPLE_RATE // 2) * seconds, SAMPLE_RATE)
        line = {"audio_filepath": str(tmp_path / f"{name}.wav"), "duration": float(seconds), "text": "on"}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(line) + "\n")
    return paths


def test_every_manifest_is_looked_at_before_one_is_transcribed(make_model, long_and_short, tmp_path, monkeypatch):
    monkeypatch.setattr(long_audio, "total_memory", lambda device: 10**8)
    student = save_model(make_model("tandem").student_model(), tmp_path / "student.nemo")
    message = r"long\.wav lasts 70 s: full attention over the batches of 16 needs"
    with pytest.raises(TooLong, match=message):
        evaluate_models(EvaluationSettings([student], long_and_short))
    short, long = (
        PseudoLabelSettings(student, each, tmp_path / "labels.json", batch_size=16) for each in long_and_short
    )
    with pytest.raises(TooLong, match=message):
        pseudo_label(long)
    pseudo_label(short)


def test_a_model_without_full_attention_reads_any_length(make_model, long_and_short, monkeypatch):
    monkeypatch.setattr(long_audio, "total_memory", lambda device: 10**8)
    with pytest.raises(TooLong):
        evaluate(make_model("tandem").student_model(), long_and_short[1])
    evaluation = evaluate(make_model("tandem", student=lstm()).student_model(), long_and_short[1])
    assert [line["audio_filepath"] for line in evaluation.predictions] == [str(long_and_short[1].with_suffix(".wav"))]


def test_a_batch_of_the_longest_utterances_without_room_has_no_peak(make_model, long_and_short, tmp_path, monkeypatch):
    from nemo_codert.benchmark import model_sizes

    def refuse(case):
        raise TooLong("too long")

    monkeypatch.setattr(model_sizes, "peak_memory_in_own_process", refuse)
    student = save_model(make_model("tandem", student=conformer(1, 16)).student_model(), tmp_path / "student.nemo")
    (found,) = evaluate_models(EvaluationSettings([student], long_and_short[:1], sizes=True))
    assert found.about["peak_memory_bytes"] is None and len(found.evaluations) == 1


def test_the_warm_up_is_the_shortest_utterance_or_a_minute_of_it():
    assert warm_up([{"duration": 9.0}, {"duration": 2.0}]) == {"duration": 2.0}
    assert warm_up([{"duration": 60.1}]) == {"duration": 60}
