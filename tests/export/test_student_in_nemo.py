"""The exported student in NeMo itself: transcribe with timestamps and confidence, and the two streaming pipelines."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_codert.cli import stream as command
from nemo_codert.export.stock_file import save_model
from tests.conftest import SAMPLE_RATE, conformer, lstm
from tests.export.tone_words import CACHE_AWARE, trained_student, utterances

pytestmark = [pytest.mark.deploy, pytest.mark.slow]
SETTINGS = Path(__file__).resolve().parents[2] / "conf" / "inference"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A manifest of six utterances of three to five words, 16 bit as NeMo and the pipelines read them alike."""
    folder = tmp_path_factory.mktemp("tones")
    lines = []
    for i, (text, audio) in enumerate(utterances(6, seed=10_000, shortest=3)):
        path = folder / f"{i}.wav"
        soundfile.write(path, audio, SAMPLE_RATE)
        lines.append({"audio_filepath": str(path), "duration": len(audio) / SAMPLE_RATE, "text": text})
    (folder / "tones.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "tones.json"


@pytest.fixture(scope="module")
def offline_student(make_config, tmp_path_factory) -> Path:
    """File of a full-context student."""
    folder = tmp_path_factory.mktemp("offline")
    return save_model(trained_student(make_config, folder, conformer(1, 32)), folder / "student.nemo")


@pytest.fixture(scope="module")
def cache_aware_student(make_config, tmp_path_factory) -> Path:
    """File of a student that looks one frame ahead."""
    folder = tmp_path_factory.mktemp("cache_aware")
    student = trained_student(make_config, folder, CACHE_AWARE, preprocessor={"normalize": "NA"})
    return save_model(student, folder / "student.nemo")


@pytest.fixture
def stream(monkeypatch, capsys):
    """Runs `codert stream` in this process: exit status, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = command.main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)  # would change the whole process
    return call


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(corpus: Path) -> list[str]:
    return [entry["audio_filepath"] for entry in entries(corpus)]


def offline_texts(model: Path, corpus: Path) -> list[str]:
    hypotheses = ASRModel.restore_from(str(model), map_location="cpu").transcribe(files(corpus), verbose=False)
    return [hypothesis.text for hypothesis in hypotheses]


def decoding_with(model, strategy: str, **settings):
    decoding = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    decoding.strategy, decoding.beam.beam_size, decoding.beam.maes_num_steps = strategy, 4, 4
    return OmegaConf.merge(decoding, settings)


@pytest.mark.parametrize("strategy", ["greedy", "greedy_batch", "beam", "maes", "malsd_batch"])
def test_a_restored_student_says_when_each_word_was_spoken(cache_aware_student, corpus, strategy):
    model = ASRModel.restore_from(str(cache_aware_student), map_location="cpu")
    model.change_decoding_strategy(decoding_with(model, strategy), verbose=False)
    hypotheses = model.transcribe(files(corpus), timestamps=True, verbose=False)
    wrong = 0
    for entry, hypothesis in zip(entries(corpus), hypotheses, strict=True):
        words = hypothesis.timestamp["word"]
        wrong += hypothesis.text != entry["text"]
        assert [word["word"] for word in words] == hypothesis.text.split()
        starts = [word["start"] for word in words]
        assert starts == sorted(starts) and 0 <= starts[0] and words[-1]["end"] <= entry["duration"] + 0.04
        assert starts[-1] - starts[0] >= 0.1 * (len(words) - 1)  # a word and its pause take 0.2 s at least
        assert "".join(segment["segment"] for segment in hypothesis.timestamp["segment"]) == hypothesis.text
    assert wrong <= 2, "the student was to know its language"


@pytest.mark.parametrize("strategy", ["greedy", "greedy_batch"])
def test_a_restored_student_says_how_sure_it_is_of_each_word(cache_aware_student, corpus, strategy):
    model = ASRModel.restore_from(str(cache_aware_student), map_location="cpu")
    confidence = {"preserve_frame_confidence": True, "preserve_word_confidence": True}
    model.change_decoding_strategy(decoding_with(model, strategy, confidence_cfg=confidence), verbose=False)
    hypotheses = model.transcribe(files(corpus), return_hypotheses=True, verbose=False)
    scores = [score for hypothesis in hypotheses for score in hypothesis.word_confidence]
    assert len(scores) == sum(len(hypothesis.text.split()) for hypothesis in hypotheses)
    assert all(0 <= score <= 1 for score in scores) and len(set(scores)) > 1


def test_an_lstm_student_has_timestamps_at_once_and_restored_with_one_line(make_model, corpus, tmp_path):
    pair = make_model("tandem", student=lstm())
    with torch.no_grad():
        pair.student_joint.pred.weight.mul_(100)  # untrained, it would say nothing
    student = pair.student_model()
    (said,) = student.transcribe(files(corpus)[:1], timestamps=True, verbose=False)
    assert said.text and said.timestamp["word"]
    restored = ASRModel.restore_from(str(save_model(student, tmp_path / "lstm.nemo")), map_location="cpu")
    with pytest.raises(AttributeError, match="subsampling_factor"):
        restored.transcribe(files(corpus)[:1], timestamps=True, verbose=False)
    restored.encoder.subsampling_factor = 4  # docs/deployment.md
    (again,) = restored.transcribe(files(corpus)[:1], timestamps=True, verbose=False)
    assert again.timestamp["word"] == said.timestamp["word"]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["streaming.stateful=false"],
        ["streaming.batch_size=1", "streaming.request_type=feature_buffer"],
        ["asr.decoding.greedy.preserve_frame_confidence=true", "asr_output_granularity=segment"],
    ],
    ids=["stateful", "stateless", "one_at_a_time", "confidence"],
)
def test_the_buffered_pipeline_gives_the_students_offline_texts(stream, offline_student, corpus, tmp_path, settings):
    output = tmp_path / "said.json"
    change = ["--set", *settings] if settings else []
    status, text, errors = stream("--model", offline_student, "--manifest", corpus, "--output", output, *change)
    assert status == 0, errors
    expected = offline_texts(offline_student, corpus)
    assert [line["pred_text"] for line in entries(output)] == expected and len(set(expected)) == 6
    (summary,) = entries(tmp_path / "said_summary.json")
    assert summary["pipeline"] == "buffered" and summary["sets"][0]["words"] == 22
    assert f"0.wav: {expected[0]}\n" in text and "WER " in text and "real-time factor " in text


def test_the_cache_aware_pipeline_gives_the_students_offline_texts(stream, cache_aware_student, corpus, tmp_path):
    expected = offline_texts(cache_aware_student, corpus)
    status, text, errors = stream(
        "--model", cache_aware_student, "--audio", *files(corpus), "--pipeline", "cache_aware"
    )  # fmt: skip
    assert status == 0, errors
    said = [line.split(": ", 1)[1] for line in text.splitlines() if ".wav: " in line]
    assert said == expected and len(set(expected)) == 6
    assert "WER" not in text  # nothing to compare with


@torch.no_grad()
def test_a_cache_aware_student_computes_the_same_frames_chunk_by_chunk(cache_aware_student, corpus):
    from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer

    model = ASRModel.restore_from(str(cache_aware_student), map_location="cpu").eval()
    buffer = CacheAwareStreamingAudioBuffer(model=model)
    signal, _, _ = buffer.append_audio_file(files(corpus)[0], stream_id=-1)
    caches, frames = model.encoder.get_initial_cache_state(batch_size=1), []
    for step, (chunk, chunk_len) in enumerate(buffer):
        drop = 0 if step == 0 else model.encoder.streaming_cfg.drop_extra_pre_encoded
        encoded, encoded_len, *caches = model.encoder.cache_aware_stream_step(
            processed_signal=chunk,
            processed_signal_length=chunk_len,
            **dict(zip(("cache_last_channel", "cache_last_time", "cache_last_channel_len"), caches, strict=True)),
            keep_all_outputs=buffer.is_buffer_empty(),
            drop_extra_pre_encoded=drop,
        )
        frames.append(encoded[:, :, : int(encoded_len)])
    streamed = torch.cat(frames, dim=2)  # [1, D, T]
    whole, whole_len = model.encoder(audio_signal=signal, length=torch.tensor([signal.shape[2]]))
    assert streamed.shape[2] > 20 and 0 <= int(whole_len) - streamed.shape[2] <= 1  # NeMo's last frame may be missing
    # 1e-6 seen: the same sums in matrices of another shape.
    torch.testing.assert_close(streamed, whole[:, :, : streamed.shape[2]], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        ("offline", ["--pipeline", "cache_aware"], "encoder is not cache-aware (att_context_style None, not"),
        ("offline", ["--pipeline", "cache_aware"], "preprocessor.normalize is 'per_feature', but this pipeline"),
        ("cache_aware", [], "preprocessor.normalize is 'NA', but this pipeline normalises features per_feature"),
        ("cache_aware", ["--pipeline", "cache_aware", "--set", "streaming.num_slots=2"], "streaming.num_slots is 2"),
        ("offline", ["--set", "streaming.sample_rate=8000"], "streaming.sample_rate is 8000, the model's is 16000 Hz"),
        ("offline", ["--set", "asr.decoding.strategy=malsd_batch"], "asr.decoding.strategy is 'malsd_batch', wanted"),
        ("offline", ["--set", "streaming.chunk_size=0"], "streaming.chunk_size is 0, wanted 0.01 or more"),
        ("offline", ["--set", "streaming.chunk=2"], "Key 'chunk' is not in struct"),
        ("offline", ["--set", "streaming.chunk_size"], "--set streaming.chunk_size: wanted KEY=VALUE"),
        ("offline", ["--config", "OWN"], "streaming.num_slots missing. NeMo has no defaults"),
        ("pair", [], "the file is a pair, of which NeMo would run the teacher"),
        ("lstm", [], "encoder is an RNNEncoder, which NeMo's pipelines cannot run"),
        ("absent.nemo", [], "--model is absent.nemo: no such file"),
    ],
)
def test_what_a_pipeline_cannot_run_is_refused_in_one_message(
    stream, make_model, offline_student, cache_aware_student, corpus, tmp_path, model, arguments, message
):
    models = {"offline": offline_student, "cache_aware": cache_aware_student}
    if model in ("pair", "lstm"):
        pair = make_model("tandem", student=lstm())
        models[model] = save_model(pair if model == "pair" else pair.student_model(), tmp_path / "other.nemo")
    if "OWN" in arguments:
        own = OmegaConf.load(SETTINGS / "cache_aware_rnnt.yaml")
        own.streaming.pop("num_slots")
        OmegaConf.save(own, tmp_path / "own.yaml")
        arguments = ["--config", tmp_path / "own.yaml", "--pipeline", "cache_aware"]
    output = tmp_path / "said.json"
    status, text, errors = stream(
        "--model", models.get(model, model), "--manifest", corpus, "--output", output, *arguments
    )  # fmt: skip
    assert status == 2 and errors.startswith("error: ") and message in errors
    assert "Traceback" not in errors and text == "" and not output.exists()


def test_parts_of_files_and_broken_audio_are_refused(stream, offline_student, corpus, tmp_path):
    line = {**entries(corpus)[0], "offset": 0.2, "duration": 0.5}
    (tmp_path / "part.json").write_text(json.dumps(line) + "\n")
    status, _, errors = stream("--model", offline_student, "--manifest", tmp_path / "part.json")
    assert status == 2 and "offset is set, but a pipeline plays whole files" in errors
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    status, _, errors = stream("--model", offline_student, "--audio", tmp_path / "broken.wav")
    assert status == 2 and "broken.wav: audio unreadable" in errors


def test_chunks_that_nemo_trips_over_are_refused_with_a_remedy(corpus):
    from nemo_codert.evaluation.streaming import stream as play

    class Tripping:
        def run(self, files):
            raise IndexError("index 5 is out of bounds for dimension 1 with size 5")  # seen at chunks of 0.2 s

    with pytest.raises(ValueError, match=r"index 5 .*: make streaming.chunk_size and .* longer"):
        play(Tripping(), entries(corpus), "tones.json")
