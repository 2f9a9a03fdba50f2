"""What a training step must not do twice."""

from collections import Counter

import pytest

from tests.conftest import ADDITIVE, STOCK


@pytest.fixture
def calls(monkeypatch):
    """Counts calls: `calls(owner, name)` wraps a method, the counter is `calls.seen`."""
    seen: Counter = Counter()

    def count(owner: object, name: str, label: str) -> None:
        method = getattr(owner, name)

        def wrapped(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            seen[label] += 1
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    count.seen = seen
    return count


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
@pytest.mark.parametrize("strategy, prediction_networks", [("shared_kd", 1), ("tandem_kd", 2), ("static_shared", 1)])
def test_features_networks_and_projections_are_computed_once(
    make_model, batch, calls, joint, strategy, prediction_networks
):
    augmentation = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 1}
    model = make_model(strategy, joint, spec_augment=augmentation)
    model._teacher_has_weights = True
    model.train()
    calls(model.preprocessor, "forward", "features")
    calls(model.spec_augmentation, "forward", "augmentation")
    for module, label in (
        (model.encoder, "encoder"), (model.student_encoder, "encoder"), (model.joint.enc, "encoder projection"),
        (model.student_joint.enc, "encoder projection"), (model.decoder, "prediction network"),
        (model.joint.pred, "prediction projection"),
    ):  # fmt: skip
        calls(module, "forward", label)
    if prediction_networks == 2:
        calls(model.student_decoder, "forward", "prediction network")
        calls(model.student_joint.pred, "forward", "prediction projection")
    model.training_step(batch, 0)["loss"].backward()
    assert calls.seen == {
        "features": 1, "augmentation": 1, "encoder": 2, "encoder projection": 2,
        "prediction network": prediction_networks, "prediction projection": prediction_networks,
    }  # fmt: skip


def test_a_frozen_prediction_network_costs_no_product_in_the_backward_pass(monkeypatch):
    from nemo_codert.losses import additive_rnnt_loss
    from nemo_codert.losses.cpu import additive
    from tests.losses.test_additive_rnnt import random_batch

    batch = random_batch()
    batch["encoder_logits"].requires_grad_()
    loss = additive_rnnt_loss(**batch)
    filled, kernel = [], additive.gradient_kernel
    monkeypatch.setattr(additive, "gradient_kernel", lambda *args: filled.extend(args[-2:]) or kernel(*args))
    loss.backward()
    assert [gradient.shape[1] for gradient in filled] == [7, 0]  # a gradient without rows takes none


def test_a_training_step_decodes_nothing(make_model, batch, monkeypatch):
    model = make_model().train()
    for decoding in (model.decoding, model.student_decoding):
        monkeypatch.setattr(decoding, "rnnt_decoder_predictions_tensor", None)
    model.training_step(batch, 0)
