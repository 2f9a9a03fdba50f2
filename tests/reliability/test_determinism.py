"""Two trainings with one seed are bit-identical on one CPU thread, whatever differs between their processes."""

import pytest
import torch

from tests.models.training_runs import equal_states
from tests.reliability.small_runs import small_run, train

pytestmark = pytest.mark.reliability

BY_EPOCHS = ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]
LOADERS = {
    "lhotse": [],
    "lhotse, two workers": ["model.train_ds.num_workers=2"],
    "classic": ["model.train_ds.use_lhotse=false", *BY_EPOCHS],
}


def final_state(folder) -> dict[str, torch.Tensor]:
    (last,) = (folder / "run" / "v" / "checkpoints").glob("*-last.ckpt")
    return torch.load(last, map_location="cpu", weights_only=False)["state_dict"]


@pytest.mark.parametrize("loader", LOADERS)
def test_two_processes_with_one_seed_end_with_the_same_weights(loader, manifest, tokenizer_dir, tmp_path, campaign):
    states = {}
    runs = [("first", 3, "1"), ("second", 3, "2"), ("other", 4, "1")]
    for name, seed, hashes in runs[: 3 if loader == "lhotse" else 2]:
        run = small_run(tmp_path / name, manifest, tokenizer_dir, f"seed={seed}", *LOADERS[loader], steps=12)
        train(run, PYTHONHASHSEED=hashes)
        states[name] = final_state(tmp_path / name)
    equal = equal_states(states["first"], states["second"])
    campaign.record(
        f"the same seed again, {loader}", injected=1, survived=int(equal), lost="nothing: bit-equal weights"
    )
    assert equal
    if "other" in states:  # so that equal does not mean: nothing is random
        assert not equal_states(states["first"], states["other"])
