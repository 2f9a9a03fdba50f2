"""Teacher and student really learn: word error rate 0 on three utterances within a stated number of steps."""

import pytest
import torch

from tests.conftest import ADDITIVE, STOCK, conformer

STEPS, WARMUP, RATE, CHECK_EVERY = 240, 20, 1e-2, 20


@pytest.mark.slow
@pytest.mark.parametrize("strategy, joint", [("shared_kd", ADDITIVE), ("shared_kd", STOCK)])
def test_both_branches_learn_three_utterances_by_heart(make_model, batch, strategy, joint):
    # Learned by heart, a transcript may leave in few frames: more tokens a frame than the usual limit.
    decoding = {"greedy": {"max_symbols": 30}}
    networks = {"teacher": conformer(layers=2, channels=32), "student": conformer(layers=1, channels=32)}
    model = make_model(strategy=strategy, joint=joint, decoding=decoding, **networks)
    signal, signal_len, transcript, transcript_len = (part[:3] for part in batch)
    batch = (signal[:, : signal_len.max()], signal_len, transcript[:, : transcript_len.max()], transcript_len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model.train().training_step(batch, 0)["loss"].backward()
        model.configure_gradient_clipping(optimizer, 5.0, "norm")
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            logs = model.eval().validation_pass(batch, 0)
            if logs["val_wer"] == 0 and logs["val_wer_teacher"] == 0:
                break
    assert logs["val_wer"] == 0 and logs["val_wer_teacher"] == 0, f"after {STEPS} steps"
    assert logs["val_wer_denom"] == logs["val_wer_teacher_denom"] == 13
