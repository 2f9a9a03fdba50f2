"""`codert.activation_checkpointing`: less memory, and nothing else that anybody could see."""

import copy
import io
import pickle
import random
import weakref

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.parts.submodules.conformer_modules import ConformerLayer
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config
from nemo_codert.modules import activation_checkpointing
from nemo_codert.modules.activation_checkpointing import RecomputedForward
from tests.conftest import ADDITIVE, STOCK, conformer, lstm
from tests.models.training_runs import equal_states, train

# All that a layer may have that the recomputation could spoil: statistics that move, and random numbers.
LIVELY = {"conv_norm_type": "batch_norm", "dropout": 0.1, "dropout_pre_encoder": 0.1, "dropout_att": 0.1}
TEACHER, STUDENT = {**conformer(layers=3, channels=24), **LIVELY}, {**conformer(layers=2), **LIVELY}


@pytest.fixture
def make_pair(make_model):
    """Factory of seeded pairs, `make_pair(checkpointed, **overrides)`."""
    return pairs_of(make_model)


@pytest.fixture
def shared(shared_pair):
    """`make_pair` for tests that only compute and train: see `shared_pair`."""
    return pairs_of(shared_pair)


def pairs_of(factory):
    def make(checkpointed: bool, *, teacher=TEACHER, student=STUDENT, **overrides):
        codert = {"activation_checkpointing": checkpointed}
        return factory(teacher=teacher, student=student, codert=codert, **overrides).train()

    return make


def checkpointed_layers(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module.forward, RecomputedForward)]


def seed(value: int) -> None:
    """Both generators that an encoder draws from: a cache-aware one draws its context from Python's."""
    random.seed(value), torch.manual_seed(value)


def gradients(model, batch, autocast: bool = False) -> dict[str, torch.Tensor]:
    """The loss and every gradient of one step, added to those there are; the same random numbers at each call."""
    seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.training_step(batch, 0)["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


ENCODERS = {
    "plain": {},
    "stochastic_depth": {"stochastic_depth_drop_prob": 0.5},
    "local_attention": {"self_attention_model": "rel_pos_local_attn", "att_context_size": [4, 4]},
    "cache_aware": {"att_context_size": [[4, 1], [4, 0]], "att_context_style": "chunked_limited"},
    "sdpa_layer_norm": {"use_pytorch_sdpa": True, "conv_norm_type": "layer_norm"},
    "shared_position_biases_group_norm": {"untie_biases": False, "conv_norm_type": "group_norm4"},
}


@pytest.mark.parametrize("settings", ENCODERS.values(), ids=ENCODERS)
def test_losses_gradients_and_batch_norm_statistics_are_bit_equal(shared, batch, settings):
    encoders = {"teacher": {**TEACHER, **settings}, "student": {**STUDENT, **settings}}
    for precision, autocast in (("float32", False), ("bfloat16", True)):
        plain, ours = (shared(on, **encoders) for on in (False, True))
        for _ in range(2):  # the second step accumulates
            assert equal_states(gradients(plain, batch, autocast), gradients(ours, batch, autocast)), precision
            assert equal_states(plain.state_dict(), ours.state_dict()), precision
        if settings.get("conv_norm_type", "batch_norm") == "batch_norm":
            assert ours.state_dict()["student_encoder.layers.1.conv.batch_norm.num_batches_tracked"] == 2


@pytest.mark.parametrize("strategy, joint", [("static", STOCK), ("tandem_kd", STOCK), ("shared_kd", ADDITIVE)])
def test_whole_training_runs_are_bit_equal(shared, batch, strategy, joint):
    def run(checkpointed):
        model = shared(checkpointed, strategy=strategy, joint=joint)
        seed(1)
        return train(model, [batch] * 3), model.state_dict()

    (losses, state), (losses_ours, state_ours) = run(False), run(True)
    assert losses == losses_ours and len(set(losses)) == 3
    assert equal_states(state, state_ours)


def test_dropout_is_drawn_again_from_the_generator_of_the_device_of_the_input(shared, batch, monkeypatch):
    # torch saves and restores a device's generator only where a tensor among the positional arguments lies on it.
    seen = []

    def recorded(function, *args, **kwargs):
        seen.append([type(arg) for arg in args])
        return torch.utils.checkpoint.checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(activation_checkpointing, "checkpoint", recorded)
    gradients(shared(True), batch)
    assert seen == [[ConformerLayer, torch.Tensor]] * 5


def test_a_second_backward_pass_over_one_graph_is_that_of_the_first(shared, batch):
    model = shared(True)
    before = None
    loss = model.training_step(batch, 0)["loss"]
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        state = copy.deepcopy(model.state_dict()) | {n: p.grad.clone() for n, p in model.named_parameters()}
        assert before is None or equal_states(before, state)
        before = state


def test_a_backward_pass_that_fails_leaves_the_batch_norm_statistics_in_place(make_pair, batch):
    model = make_pair(True)
    buffers = dict(model.named_buffers())
    loss = model.training_step(batch, 0)["loss"]

    def fail(*_):
        raise RuntimeError("no backward today")

    model.encoder.layers[0].norm_out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no backward today"):
        loss.backward()
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made since it was entered that somebody still holds; `peak` is the most there were."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = [*model.parameters(), *model.buffers()]  # views of weights are made in a step, their storage is not
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in own)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return result

    def count(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)


def test_a_layer_keeps_only_its_input_for_the_backward_pass(shared, batch):
    def waiting(checkpointed, layers):
        model = shared(checkpointed, teacher={**TEACHER, "n_layers": layers})
        signal, length = model.extract_features(*batch[:2])
        with LiveBytes(model) as live:
            encoded, _ = model.encoder(audio_signal=signal, length=length)
        return live.now, encoded.nbytes

    few, input_bytes = waiting(True, 2)
    assert waiting(True, 4)[0] - few == 2 * input_bytes
    # For comparison: over thirty tensors of that size and more in each layer.
    assert waiting(False, 4)[0] - waiting(False, 2)[0] > 2 * 30 * input_bytes


def test_a_step_needs_less_memory(make_pair, batch):
    def memory(checkpointed):
        encoders = {"teacher": {**TEACHER, "n_layers": 8}, "student": {**STUDENT, "n_layers": 6}}
        model = make_pair(checkpointed, **encoders)
        with LiveBytes(model) as live:
            loss = model.training_step(batch, 0)["loss"]
            waiting = live.now
            loss.backward()
        return waiting, live.peak

    (waiting, peak), (waiting_ours, peak_ours) = memory(False), memory(True)
    # What stays: features, subsampling, losses, and in the peak one layer and the gradients of the weights.
    assert waiting_ours < 0.4 * waiting
    assert peak_ours < 0.4 * peak


def test_a_frozen_teacher_is_left_alone_and_may_have_no_layers(shared, batch):
    for teacher in (TEACHER, lstm()):
        model = shared(True, strategy="static", teacher=teacher)
        assert checkpointed_layers(model) == ["student_encoder.layers.0", "student_encoder.layers.1"]
        train(model, [batch])


def test_nothing_is_computed_twice_without_gradients_or_in_eval_mode(shared, batch, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("computed twice")

    model = shared(True)
    monkeypatch.setattr(activation_checkpointing, "checkpoint", refused)
    features = model.extract_features(*batch[:2])
    with torch.no_grad():
        model.encoder(audio_signal=features[0], length=features[1])
    model.eval()
    model.encoder(audio_signal=features[0], length=features[1])
    model.validation_pass(batch, 0)
    with pytest.raises(AssertionError, match="computed twice"):
        model.train().training_step(batch, 0)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_computes_with_its_own_layers(shared, batch, copied):
    def through_a_file(encoder):
        file = io.BytesIO()
        torch.save(encoder, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    ways = {"deepcopy": copy.deepcopy, "pickle": lambda e: pickle.loads(pickle.dumps(e)), "torch.save": through_a_file}
    model = shared(True)
    encoder = ways[copied](model.encoder)
    assert all(layer.forward.layer is layer for layer in encoder.layers)
    assert not {id(p) for p in encoder.parameters()} & {id(p) for p in model.parameters()}
    signal, length = model.extract_features(*batch[:2])
    encoder(audio_signal=signal, length=length)[0].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in encoder.layers.parameters())


def test_nemo_still_finds_its_own_layers_in_the_encoder(make_pair, batch):
    # NeMo's change of attention passes over layers of any other class in silence.
    model = make_pair(True, teacher={**TEACHER, "pos_emb_max_len": 5000})
    model.change_attention_model("rel_pos_local_attn", [4, 4])
    assert {layer.self_attention_model for layer in model.encoder.layers} == {"rel_pos_local_attn"}
    train(model, [batch])


def test_files_and_names_of_weights_are_those_of_a_plain_pair(shared, tmp_path):
    plain, ours = (shared(on) for on in (False, True))
    assert equal_states(plain.state_dict(), ours.state_dict())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in ours.named_modules()]
    plain.save_to(str(tmp_path / "plain.nemo"))
    ours.save_to(str(tmp_path / "ours.nemo"))
    cfg = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "ours.nemo"), return_config=True)
    cfg.codert.activation_checkpointing = False
    without = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "ours.nemo"), override_config_path=cfg)
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "ours.nemo"))
    assert checkpointed_layers(restored) == checkpointed_layers(ours) and not checkpointed_layers(without)
    assert equal_states(restored.state_dict(), ours.state_dict())
    assert equal_states(without.state_dict(), ours.state_dict())


def test_the_stock_models_that_leave_a_pair_know_nothing_of_it(shared, batch, tmp_path):
    model = shared(True)
    train(model, [batch])
    for stock in (model.student_model(), model.teacher_model()):
        assert type(stock) is EncDecRNNTBPEModel and not checkpointed_layers(stock)
        assert "activation_checkpointing" not in OmegaConf.to_yaml(stock.cfg)
        stock.save_to(str(tmp_path / "stock.nemo"))
        assert b"nemo_codert.modules" not in pickle.dumps(stock.encoder)
        restored = EncDecRNNTBPEModel.restore_from(str(tmp_path / "stock.nemo"))
        assert not checkpointed_layers(restored)
    assert checkpointed_layers(model) == [f"encoder.layers.{i}" for i in range(3)] + [
        f"student_encoder.layers.{i}" for i in range(2)
    ]


@pytest.mark.parametrize("stock_config", [student_config, teacher_config])
def test_the_config_of_a_model_trained_alone_has_no_such_key(make_config, stock_config):
    with_key, without = (
        stock_config(make_config(teacher=TEACHER, student=STUDENT, codert={"activation_checkpointing": on}))
        for on in (True, False)
    )
    assert with_key == without and "activation_checkpointing" not in OmegaConf.to_yaml(with_key)
    assert not checkpointed_layers(EncDecRNNTBPEModel(with_key))
