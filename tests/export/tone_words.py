"""A language of six tones, which a tiny student learns in seconds: what it hears decides what it writes."""

import math
from pathlib import Path

import numpy as np
import torch

from tests.conftest import SAMPLE_RATE, conformer, padded_batch

WORDS = {"turn": 300, "light": 500, "on": 1000, "off": 1600, "now": 2500, "red": 4000}  # Hz
STEPS, WARMUP, RATE, BATCH = 400, 20, 1e-2, 8
BATCHES = 50  # whose features are computed once
CACHE_AWARE = {
    **conformer(layers=1, channels=32),
    "att_context_style": "chunked_limited",
    "att_context_size": [8, 1],
    "causal_downsampling": True,
    "conv_context_size": "causal",
}


def spoken(words: list[str], generator: np.random.Generator) -> np.ndarray:
    """One tone a word, with pauses, silence at both ends and a little noise."""
    parts = [np.zeros(int(generator.uniform(0.1, 0.4) * SAMPLE_RATE))]
    for word in words:
        time = np.arange(int(generator.uniform(0.15, 0.25) * SAMPLE_RATE)) / SAMPLE_RATE
        parts.append(0.3 * np.sin(2 * np.pi * WORDS[word] * time))
        parts.append(np.zeros(int(generator.uniform(0.06, 0.12) * SAMPLE_RATE)))
    audio = np.concatenate([*parts, np.zeros(int(0.3 * SAMPLE_RATE))])
    return (audio + 0.01 * generator.standard_normal(len(audio))).astype(np.float32)


def utterances(count: int, seed: int, shortest: int = 1) -> list[tuple[str, np.ndarray]]:
    """Text and audio of random sentences of up to five words."""
    generator = np.random.default_rng(seed)
    texts = [list(generator.choice(list(WORDS), generator.integers(shortest, 6))) for _ in range(count)]
    return [(" ".join(words), spoken(words, generator)) for words in texts]


def tokenizer(folder: Path) -> Path:
    """A tokenizer in which every word is one piece."""
    from nemo_codert.data.tokenizer import train_tokenizer

    train_tokenizer([" ".join(WORDS)], folder, vocab_size=35)
    return folder


def batch_of(model, pairs: list[tuple[str, np.ndarray]]) -> tuple[torch.Tensor, ...]:
    """Signal [B, S], signal_len, transcript [B, U], transcript_len."""
    signals = [torch.from_numpy(audio) for _, audio in pairs]
    tokens = [torch.tensor(model.tokenizer.text_to_ids(text)) for text, _ in pairs]
    return padded_batch(signals, tokens)


def trained_student(make_config, folder: Path, encoder: dict, **overrides):
    """A stock student that knows the language well enough; the pair's teacher is left out of the training."""
    from nemo_codert.models import EncDecCoDERTBPEModel
    from nemo_codert.modules.transducer import Batch

    torch.manual_seed(0)
    overrides = {
        "codert": {"distillation": {"weight": 0.0}},
        "tokenizer": {"dir": str(tokenizer(folder))},
        **overrides,
    }
    pair = EncDecCoDERTBPEModel(
        make_config("static", student=encoder, teacher=conformer(layers=1, channels=16), **overrides)
    )
    networks = list(pair.student_transducer.parameters())
    optimizer = torch.optim.AdamW(networks, lr=RATE, weight_decay=0.0, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    pair.train()
    batches = []
    for seed in range(BATCHES):
        signal, signal_len, *transcript = batch_of(pair, utterances(BATCH, seed=seed))
        batches.append((pair.extract_features(signal, signal_len), Batch(signal, signal_len, *transcript)))
    for step in range(STEPS):
        features, batch = batches[step % BATCHES]
        optimizer.zero_grad()
        student = pair.student_transducer.run(*features, batch.transcript, batch.transcript_len)
        pair.codert_losses(student, None, batch, step)["train_loss"].backward()
        torch.nn.utils.clip_grad_norm_(networks, 5.0)
        optimizer.step()
        schedule.step()
    return pair.student_model()
