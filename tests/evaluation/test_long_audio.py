"""Audio too long for full attention is refused before its memory is allocated."""

import pytest
import soundfile
from omegaconf import OmegaConf

from nemo_codert.evaluation import long_audio
from nemo_codert.evaluation.long_audio import attention_bytes
from nemo_codert.evaluation.transcribe import evaluate, warm_up
from tests.conftest import SAMPLE_RATE, lstm

FULL = {"self_attention_model": "rel_pos", "n_heads": 4, "subsampling_factor": 8}


def config(encoder: dict, **preprocessor):
    return OmegaConf.create({"preprocessor": preprocessor, "encoder": encoder})


def test_the_memory_is_that_of_the_largest_batch():
    frames = 100.0 / 0.08
    assert attention_bytes(config(FULL), [100.0], 16) == 7 * 4 * 4 * frames**2
    assert attention_bytes(config(FULL), [1.0, 100.0, 2.0], 2) == 2 * 7 * 4 * 4 * frames**2  # the first two
    assert attention_bytes(config(FULL, window_stride=0.02), [100.0], 1) == 7 * 4 * 4 * (frames / 2) ** 2
    assert attention_bytes(config({**FULL, "self_attention_model": "rel_pos_local_attn"}), [1e6], 1) == 0
    assert attention_bytes(config(lstm()), [1e6], 1) == 0 == attention_bytes(config(FULL), [], 16)


@pytest.mark.parametrize(
    "gigabytes, way_out",
    [
        (1.0, "there are 1 GB. Either take a batch size of 3 or less, or cut the audio at pauses, or stream it"),
        (0.1, "there are 0.1 GB. Either cut the audio at pauses, or stream it in chunks (codert stream)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_ways_out(monkeypatch, gigabytes, way_out):
    monkeypatch.setattr(long_audio, "total_memory", lambda: int(gigabytes * 1e9))
    entries = [{"audio_filepath": f"{i}.wav", "duration": 130.0 + i} for i in range(4)]
    long_audio.refuse_without_memory(config(lstm()), entries, 4)
    with pytest.raises(ValueError) as error:
        long_audio.refuse_without_memory(config(FULL), entries, 4)
    assert str(error.value).startswith("3.wav lasts 133 s: full attention over the batches of 4 needs some 1.24 GB, ")
    assert way_out in str(error.value)


def test_evaluate_refuses_an_hour_and_reads_it_where_memory_is_linear(make_model, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", [0.0, 0.1] * SAMPLE_RATE * 35, SAMPLE_RATE)  # 70 s
    (tmp_path / "long.json").write_text(
        f'{{"audio_filepath": "{tmp_path / "long.wav"}", "duration": 70.0, "text": "on"}}\n'
    )
    monkeypatch.setattr(long_audio, "total_memory", lambda: 10**8)
    with pytest.raises(ValueError, match=r"long\.wav lasts 70 s: full attention over the batches of 16 needs"):
        evaluate(make_model("tandem").student_model(), tmp_path / "long.json")
    assert evaluate(make_model("tandem", student=lstm()).student_model(), tmp_path / "long.json").audio_seconds == 70


def test_the_warm_up_is_the_shortest_utterance_and_none_of_a_minute_or_more():
    assert warm_up([{"duration": 9.0}, {"duration": 2.0}]) == [{"duration": 2.0}]
    assert warm_up([{"duration": 3600.0}]) == []
