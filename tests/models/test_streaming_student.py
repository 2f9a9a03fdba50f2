"""The student of conf/fsdd_streaming.yaml: trained with a shift and FastEmit, and decoded chunk by chunk as a whole.

What is streamed is a file exported from a pair, read back and driven by NeMo's own cache-aware code.
"""

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer

from nemo_codert.export.stock_file import save_model
from nemo_codert.models import EncDecCoDERTBPEModel
from tests.config.test_conf_files import model_section, shrunk
from tests.conftest import SAMPLE_RATE, tone
from tests.models.training_runs import branch_losses, train

FIRST_CHUNK, CHUNK = 5, 8  # feature frames of 20 ms that make two encoder frames, in NeMo's streaming_cfg


def streaming_pair(tokenizer_dir, *overrides: str) -> EncDecCoDERTBPEModel:
    """The pair of the config, its layers shrunk, without dropout and dither."""
    cfg = shrunk(model_section("fsdd_streaming", tokenizer_dir, *overrides))
    cfg.preprocessor.dither = 0.0
    for encoder in (cfg.encoder, cfg.student.encoder):
        encoder.dropout = encoder.dropout_pre_encoder = encoder.dropout_att = 0.0
    torch.manual_seed(0)
    return EncDecCoDERTBPEModel(cfg)


@pytest.fixture(scope="module")
def student(tokenizer_dir, tmp_path_factory):
    """A student as a user has it: exported to a file and restored. Its untrained logits are spread until it speaks."""
    pair = streaming_pair(tokenizer_dir)
    with torch.no_grad():
        pair.student_joint.enc.weight.mul_(4)
        pair.student_joint.enc.bias[-1] += 3
    path = save_model(pair.student_model(), tmp_path_factory.mktemp("student") / "student.nemo")
    return ASRModel.restore_from(str(path)).eval()


def write_audio(path, feature_frames: int) -> str:
    """Audio of a number of feature frames, so that one knows where its last chunk ends."""
    audio = tone(feature_frames * 0.02, seed=3)
    soundfile.write(path, audio, SAMPLE_RATE)
    return str(path)


@torch.no_grad()
def offline(student: ASRModel, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, F, T_in] and encoder frames [1, D, T] of a whole file, without padding."""
    signal = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
    features, features_len = student.preprocessor(input_signal=signal, length=torch.tensor([signal.shape[1]]))
    features = features[:, :, : int(features_len)]  # NeMo's front end appends a frame of zeros
    encoded, encoded_len = student.encoder(audio_signal=features, length=features_len)
    return features, encoded[:, :, : int(encoded_len)]


@torch.no_grad()
def streamed(student: ASRModel, features: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Encoder frames [1, D, T] and greedy text of the same features, chunk by chunk with NeMo's own steps."""
    buffer = CacheAwareStreamingAudioBuffer(model=student)
    buffer.append_processed_signal(features)
    caches = student.encoder.get_initial_cache_state(batch_size=1)
    text_caches, hypotheses, frames = caches, None, []
    for number, (chunk, chunk_len) in enumerate(buffer):
        step = {"processed_signal": chunk, "processed_signal_length": chunk_len}
        step["keep_all_outputs"] = buffer.is_buffer_empty()
        step["drop_extra_pre_encoded"] = student.encoder.streaming_cfg.drop_extra_pre_encoded if number else 0
        encoded, encoded_len, *caches = student.encoder.cache_aware_stream_step(**step, **named(caches))
        frames.append(encoded[:, :, : int(encoded_len)])
        result = student.conformer_stream_step(**step, **named(text_caches), previous_hypotheses=hypotheses)
        text_caches, hypotheses = result[2:5], result[5]
    return torch.cat(frames, 2), hypotheses[0].text


def named(caches) -> dict[str, torch.Tensor]:
    return dict(zip(("cache_last_channel", "cache_last_time", "cache_last_channel_len"), caches, strict=True))


def test_streamed_frames_and_text_are_those_of_the_whole_utterance(student, tmp_path):
    path = write_audio(tmp_path / "audio.wav", FIRST_CHUNK + 10 * CHUNK)
    features, whole = offline(student, path)
    frames, text = streamed(student, features)
    assert frames.shape == whole.shape and frames.shape[2] == 22
    # float32 sums of attention over 70 cached frames in another order; 8e-7 seen
    torch.testing.assert_close(frames, whole, rtol=0, atol=1e-5)
    assert text == student.transcribe([path], verbose=False)[0].text
    said = student.tokenizer.text_to_ids(text)
    assert len(set(said)) > 1 and len(said) < frames.shape[2] * student.cfg.decoding.greedy.max_symbols


@pytest.mark.parametrize("remainder", range(1, CHUNK))
def test_a_last_chunk_that_is_not_full_loses_a_frame_at_most(student, remainder, tmp_path):
    features, whole = offline(student, write_audio(tmp_path / "audio.wav", FIRST_CHUNK + 4 * CHUNK + remainder))
    frames, _ = streamed(student, features)
    assert whole.shape[2] - frames.shape[2] in (0, 1)
    torch.testing.assert_close(frames, whole[:, :, : frames.shape[2]], rtol=0, atol=1e-5)  # as above


def test_what_follows_a_chunk_does_not_change_its_frames(student, tmp_path):
    """The student's look-ahead ends with its chunk of two frames; its teacher's does not end."""
    features, whole = offline(student, write_audio(tmp_path / "audio.wav", FIRST_CHUNK + 4 * CHUNK))
    changed = features.clone()
    changed[:, :, FIRST_CHUNK + 2 * CHUNK :] += 1.0
    with torch.no_grad():
        other, _ = student.encoder(audio_signal=changed, length=torch.tensor([changed.shape[2]]))
    differs = (other - whole).abs().amax((0, 1)) > 1e-4
    assert differs.tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize("strategy", ["shared_kd", "tandem_kd", "static"])
def test_a_streaming_student_learns_from_a_teacher_that_hears_everything(tokenizer_dir, batch, strategy):
    shift, emit = (
        "++model.codert.distillation.encoder.frame_shift=2",
        "model.loss.warprnnt_numba_kwargs.fastemit_lambda=0.01",
    )
    pair = streaming_pair(tokenizer_dir, f"strategy={strategy}", shift, emit)
    assert pair.encoder.att_context_size == [-1, -1] and pair.student_encoder.att_context_size == [70, 1]
    losses = train(pair, [batch] * 6, lr=3e-3)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_shift_and_fastemit_change_their_own_part_of_the_loss(tokenizer_dir, batch):
    pair = streaming_pair(tokenizer_dir).eval()

    def parts(shift: int = 0, fastemit: float = 0.0) -> dict[str, float]:
        pair.cfg.codert.distillation.encoder.frame_shift = shift
        pair.cfg.loss.warprnnt_numba_kwargs.fastemit_lambda = fastemit
        pair._setup_losses()  # as when it was built
        return {name: value.item() for name, value in branch_losses(pair, batch).items()}

    plain = {name: value.item() for name, value in branch_losses(pair, batch).items()}
    assert plain == parts()
    shifted, emitting = parts(shift=2), parts(fastemit=0.01)
    student, distillation = "train_rnnt_loss_student", "train_distillation_loss"
    assert shifted[student] == plain[student] and shifted[distillation] != plain[distillation]
    assert emitting[student] == pytest.approx(1.01 * plain[student]) and emitting[distillation] == plain[distillation]


def test_a_shift_longer_than_every_utterance_leaves_the_rnnt_loss_alone(tokenizer_dir, batch):
    pair = streaming_pair(tokenizer_dir, "++model.codert.distillation.encoder.frame_shift=10000").eval()
    losses = branch_losses(pair, batch)
    assert losses["train_distillation_loss"] == 0.0
    losses["train_loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in pair.parameters() if p.grad is not None)
