"""What a training step must not do twice."""

from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules import encoder_layers, transducer
from tests.conftest import ADDITIVE, STOCK, conformer
from tests.models.teacher_files import CTC, KINDS, save_teacher


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


PAIRS = {1: 1, 2: 2}
MANY_TERMS = {
    "encoder": {"both_ways": True},
    "with_prior": {"prior": "mean_prediction", "both_ways": True},
    "nodes": {"at": "joint", "both_ways": True},
    "occupied": {"at": "joint", "nodes": "occupied", "classes": "target_blank_rest"},
    "mse": {"at": "hidden", "by": "mse", "layers": PAIRS},
    "gram": {"at": "hidden", "by": "gram", "layers": {2: 2}},
    "sequence": {"at": "sequence", "by": "l2"},
    "heads": {"at": "ctc", "weight": 0.0, "layers": [1, 2], "ctc_weight": 0.3},
}


@pytest.fixture
def step_calls(calls, monkeypatch):
    """What one training step of a pair computes: name -> number of calls, the layers that were captured besides."""

    def step(model: EncDecCoDERTBPEModel, batch) -> tuple[dict[str, int], list[list[int]]]:
        model._teacher_has_weights = True
        model.train()
        sides, captured = {}, []
        for branch, networks in (("student", model.student_transducer), ("teacher", model.teacher_transducer)):
            calls(networks.encoder, "forward", f"{branch} encoder")
            for name in ("project_encoder", "project_prednet"):
                calls(networks.joint, name, f"{branch} {name}")
            if networks.ctc_head is not None:
                calls(networks.ctc_head.decoder_layers, "forward", f"{branch} ctc")
            sides[networks.joint] = branch
        for decoder in {model.decoder, model.student_decoder}:
            calls(decoder, "forward", "prediction network")
        calls(model.preprocessor, "forward", "features")
        heads = {head for term in model.criteria.values() for head in getattr(term, "heads", {}).values()}
        for head in heads | ({model.student_ctc_decoder} if model.student_ctc_decoder else set()):
            calls(head.decoder_layers, "forward", "heads")
        projected, access = transducer.projected_logits, encoder_layers.access_to_layers

        def counted(joint, side):
            calls.seen[f"{sides[joint]} logits"] += 1
            return projected(joint, side)

        monkeypatch.setattr(transducer, "projected_logits", counted)
        monkeypatch.setattr(
            encoder_layers, "access_to_layers", lambda *args: captured.append(args[1]) or access(*args)
        )
        losses = model.training_step(batch, 0)
        assert model.step_losses.keys() >= {term.spec.log_name for term in model.criteria.values()}
        losses["loss"].backward()
        return dict(calls.seen), captured

    return step


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK])
@pytest.mark.parametrize("strategy, prediction_networks, labelled", [("shared_kd", 1, 3), ("tandem_kd", 2, 4)])
def test_many_terms_compute_each_part_of_a_branch_once(
    make_config, batch, step_calls, joint, strategy, prediction_networks, labelled
):
    cfg = make_config(strategy, joint, student=conformer(layers=2, channels=16))
    cfg.codert.distillation = MANY_TERMS
    signal, signal_len, transcript, transcript_len = batch
    given = signal, signal_len, transcript, transcript_len * (torch.arange(4) < labelled)
    seen, captured = step_calls(EncDecCoDERTBPEModel(OmegaConf.merge(cfg, {"student": CTC})), given)
    own = {"teacher project_prednet": 1} if prediction_networks == 2 else {}
    assert seen == {
        **{"features": 1, "student encoder": 1, "teacher encoder": 1, "prediction network": prediction_networks},
        **{"student project_encoder": 1, "teacher project_encoder": 1, "student project_prednet": 1, **own},
        **{"student logits": 2, "teacher logits": 2},  # of the encoder and of the prediction network
        "heads": 3,  # the student's own, and one for each of two layers
    }
    assert captured == [[0, 1], [0, 1]]


def test_the_terms_at_ctc_heads_compute_each_head_once(make_config, batch, step_calls, tmp_path):
    path, _ = save_teacher(make_config, tmp_path, "hybrid")
    cfg = make_config("static", STOCK, student=conformer(layers=2, channels=16))
    cfg.codert.distillation = {
        "kl": {"at": "ctc"}, "l2": {"at": "ctc", "by": "l2"}, "encoder": {},
        "middle": {"at": "ctc", "layers": [1, 2], "ctc_weight": 0.3},
    }  # fmt: skip
    teacher = {"codert": {"teacher_checkpoint": path, "teacher_logits": "ctc"}}
    model = EncDecCoDERTBPEModel(OmegaConf.merge(cfg, KINDS["hybrid"], {"student": CTC}, teacher))
    seen, captured = step_calls(model, batch)
    assert seen == {
        **{"features": 1, "student encoder": 1, "teacher encoder": 1, "prediction network": 1},
        **{"student project_encoder": 1, "student project_prednet": 1, "student logits": 1},
        **{"teacher ctc": 1, "heads": 3},
    }
    assert captured == [[0, 1]]


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
