"""What each strategy trains and what it must not move, on both joints."""

import pytest
import torch

from tests.conftest import ADDITIVE, STOCK, STRATEGIES
from tests.models.training_runs import branch_losses, moved_groups, touched_groups

TEACHER = {"encoder", "decoder", "joint.enc", "joint.pred", "joint.joint_net"}
STUDENT = {f"student_{group}" for group in TEACHER}
OWN_STUDENT = STUDENT - {"student_decoder", "student_joint.pred"}  # where the prediction network is shared
TRAINED = {
    "static": STUDENT,
    "tandem": TEACHER | STUDENT,
    "tandem_kd": TEACHER | STUDENT,
    "shared": TEACHER | OWN_STUDENT,
    "shared_kd": TEACHER | OWN_STUDENT,
    "static_shared": OWN_STUDENT,
}
JOINTS = {"additive": ADDITIVE, "stock": STOCK}


def with_joint(groups: set[str], joint: str) -> set[str]:
    """An additive joint has no output layer of its own."""
    return groups if joint == "stock" else {group for group in groups if not group.endswith("joint_net")}


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_moves_exactly_what_the_strategy_trains(shared_pair, batch, strategy, joint):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint])
    model.training_step(batch, 0)["loss"].backward()
    trained = with_joint(TRAINED[strategy], joint)
    assert moved_groups(model) == touched_groups(model) == trained
    # Under distributed training a trainable parameter without a gradient stops the run at its second step.
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(name.startswith(("encoder.", "decoder.", "joint.")) for name in frozen)
    assert bool(frozen) == strategy.startswith("static")


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("strategy", ["tandem_kd", "shared_kd"])
def test_the_distillation_term_moves_the_students_encoder_logits_alone(shared_pair, batch, strategy, joint):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint])
    branch_losses(model, batch)["train_distillation_loss"].backward()
    expected = with_joint({"student_encoder", "student_joint.enc", "student_joint.joint_net"}, joint)
    assert moved_groups(model) == touched_groups(model) == expected


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("strategy", ["shared", "shared_kd"])
def test_the_students_rnnt_loss_moves_the_shared_prediction_network(shared_pair, batch, strategy, joint):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint])
    branch_losses(model, batch)["train_rnnt_loss_student"].backward()
    assert moved_groups(model) == with_joint(OWN_STUDENT | {"decoder", "joint.pred"}, joint)


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("strategy", ["tandem_kd", "shared_kd"])
def test_the_teachers_rnnt_loss_moves_no_part_of_the_students_own(shared_pair, batch, strategy, joint):
    model = shared_pair(strategy=strategy, joint=JOINTS[joint])
    branch_losses(model, batch)["train_rnnt_loss_teacher"].backward()
    assert moved_groups(model) == touched_groups(model) == with_joint(TEACHER, joint)


@pytest.mark.parametrize("joint", JOINTS)
def test_both_ways_with_a_prior_moves_all_that_makes_the_logits_of_either_side(shared_pair, batch, joint):
    term = {"prior": "mean_prediction", "both_ways": True}
    model = shared_pair(strategy="tandem_kd", joint=JOINTS[joint], codert={"distillation": term})
    branch_losses(model, batch)["train_distillation_loss"].backward()
    assert moved_groups(model) == with_joint(TEACHER | STUDENT, joint)


@pytest.mark.parametrize("joint", JOINTS)
def test_distillation_changes_no_gradient_of_the_teacher(shared_pair, batch, joint):
    gradients = []
    for weight in (0.0, 5.0):
        model = shared_pair(strategy="tandem_kd", joint=JOINTS[joint], codert={"distillation": {"weight": weight}})
        model.training_step(batch, 0)["loss"].backward()
        gradients.append(
            {n: p.grad for n, p in model.named_parameters() if n.startswith(("encoder.", "decoder.", "joint."))}
        )
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_the_teacher_does_not_run_where_nothing_needs_its_frames(make_model, batch):
    model = make_model(strategy="static", codert={"distillation": {"start_step": 3}})
    model.encoder.register_forward_hook(lambda *_: pytest.fail("the frozen teacher ran before start_step"))
    assert torch.isfinite(model.training_step(batch, 0)["loss"])


def test_a_student_without_its_own_loss_learns_from_the_teacher_alone(shared_pair, batch):
    model = shared_pair(strategy="shared_kd", codert={"student_loss_weight": 0.0})
    model.training_step(batch, 0)["loss"].backward()
    assert moved_groups(model) == with_joint(TEACHER | OWN_STUDENT, "additive")
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_loss_weights_scale_their_parts(shared_pair, batch):
    weights = {"teacher_loss_weight": 0.5, "student_loss_weight": 2.0, "distillation": {"weight": 3.0}}
    parts = branch_losses(shared_pair(strategy="shared_kd", codert=weights), batch)
    expected = (
        0.5 * parts["train_rnnt_loss_teacher"]
        + 2.0 * parts["train_rnnt_loss_student"]
        + 3.0 * parts["train_distillation_loss"]
    )
    # Three float32 products summed in another order.
    torch.testing.assert_close(parts["train_loss"], expected, rtol=1e-6, atol=0)
