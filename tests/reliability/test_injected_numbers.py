"""Every kind of number that is not finite, in single and in mixed precision: stopped or skipped, nothing moved."""

import pytest

from tests.training.guarded_runs import FAULTS, check_skip, check_stop, run

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize("action", ["stop", "skip"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["shared_kd", "tandem_kd"])
def test_no_fault_reaches_the_optimizer(action, precision, strategy, make_model, batch, campaign, tmp_path):
    survived, failure = 0, None
    for fault in FAULTS:
        model = make_model(strategy=strategy, codert={"non_finite": {"action": action}})
        folder = tmp_path / fault.__name__
        folder.mkdir()

        def fit(*args, folder=folder, **settings):
            return run(folder, batch, *args, **settings)

        try:
            if action == "stop":
                check_stop(model, fit, fault, precision)
            else:
                check_skip(model, fit, fault, precision, folder)
            survived += 1
        except AssertionError as error:
            failure = error
    lost = "nothing: weights and optimizer bit-equal" + (", the step dropped" if action == "skip" else "")
    name = f"NaN signal, inf gradient, NaN loss part: {action}, {precision}, {strategy}"
    campaign.record(name, injected=len(FAULTS), survived=survived, lost=lost)
    assert failure is None, failure
