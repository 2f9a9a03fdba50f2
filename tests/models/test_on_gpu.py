"""What only a CUDA device shows: losses equal to the CPU's, bfloat16 training, two host synchronisations in a loss."""

import pytest
import torch

from tests.conftest import ADDITIVE, STOCK
from tests.models.training_runs import branch_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def losses_on(device: str, model, batch) -> dict[str, float]:  # noqa: ANN001
    """All parts of the loss of one batch, without augmentation or dropout."""
    model = model.to(device).eval()
    with torch.no_grad():
        losses = branch_losses(model, tuple(tensor.to(device) for tensor in batch))
        return {name: float(x) for name, x in losses.items()}


@pytest.mark.parametrize(
    "joint, rnnt_loss", [(ADDITIVE, "auto"), (ADDITIVE, "nemo"), (STOCK, "auto"), (STOCK, "exact")]
)
def test_the_losses_are_those_of_the_cpu(make_model, batch, joint, rnnt_loss):
    model = make_model("tandem_kd", joint, codert={"rnnt_loss": rnnt_loss})
    on_cpu = losses_on("cpu", model, batch)
    for name, value in losses_on("cuda", model, batch).items():
        assert value == pytest.approx(on_cpu[name], rel=1e-3)  # convolutions in TF32 unless switched off


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_bfloat16_training_stays_finite(make_model, batch, joint, activation_checkpointing):
    model = make_model("shared_kd", joint, codert={"activation_checkpointing": activation_checkpointing})
    model = model.to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    on_gpu = [tensor.to("cuda") for tensor in batch]
    losses = []
    for step in range(100):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.training_step(on_gpu, step)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]


def test_the_additive_loss_synchronises_twice():
    from nemo_codert.losses import additive_rnnt_loss
    from tests.losses.test_additive_rnnt import LOGITS, random_batch
    from tests.losses.test_on_cuda import to_cuda

    batch = to_cuda(random_batch())
    leaves = {name: batch[name].requires_grad_() for name in LOGITS}
    additive_rnnt_loss(**(batch | leaves)).backward()  # compiles and allocates
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        additive_rnnt_loss(**(batch | leaves)).backward()
    copies = [event for event in profile.events() if event.name == "cudaMemcpyAsync"]
    assert len([event for event in profile.events() if event.name == "cudaStreamSynchronize"]) <= 2, copies
