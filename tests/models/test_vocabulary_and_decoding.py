"""Changes of decoding and vocabulary act on both branches of a pair, or are refused."""

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.data.tokenizer import train_tokenizer
from nemo_codert.models import EncDecCoDERTBPEModel
from tests.conftest import ADDITIVE, SENTENCES, STOCK
from tests.models.training_runs import train

TOKENS = 40


@pytest.fixture(scope="module")
def larger_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger_tokenizer")
    train_tokenizer(SENTENCES, folder, vocab_size=TOKENS)
    return folder


def longer_batch(model, batch):
    """The batch with its transcripts in the model's present word pieces."""
    tokens = [torch.tensor(model.tokenizer.text_to_ids(text)) for text in SENTENCES[:4]]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return batch[0], batch[1], padded, torch.tensor([len(t) for t in tokens])


def test_a_decoding_strategy_is_changed_in_both_branches(make_model):
    model = make_model()
    assert type(model.decoding.decoding) is type(model.student_decoding.decoding)
    for strategy in ("greedy", "beam", "malsd_batch"):
        before = type(model.student_decoding.decoding)
        decoding = OmegaConf.create({"strategy": strategy, "beam": {"beam_size": 2}})
        model.change_decoding_strategy(decoding, verbose=False)
        assert type(model.decoding.decoding) is type(model.student_decoding.decoding) is not before
        assert model.cfg.decoding.strategy == strategy
        assert model.student_decoding.decoding.decoder is model.student_decoder
        assert model.student_decoding.decoding.joint is model.student_joint
        assert model.decoding.decoding.joint is model.joint
        assert model.student_wer.decoding is model.student_decoding and model.wer.decoding is model.decoding


def test_a_softmax_temperature_is_the_same_in_both_branches(make_model):
    model = make_model()
    model.change_decoding_strategy(OmegaConf.create({"strategy": "greedy_batch", "temperature": 0.5}), verbose=False)
    assert model.joint.temperature == model.student_joint.temperature == 0.5


@pytest.mark.parametrize("strategy, joint", [("shared_kd", ADDITIVE), ("tandem_kd", STOCK)])
def test_a_new_vocabulary_keeps_sharing_and_loss_settings_and_trains(
    make_model, batch, larger_tokenizer, tmp_path, strategy, joint
):
    model = make_model(strategy=strategy, joint=joint, rnnt_reduction="mean_volume")
    OmegaConf.update(model.cfg, "loss.warprnnt_numba_kwargs.fastemit_lambda", 0.01)
    model._setup_losses()
    encoders = [model.encoder.pre_encode.out.weight.clone(), model.student_encoder.pre_encode.out.weight.clone()]
    model.change_vocabulary(str(larger_tokenizer), "bpe")
    shared = strategy == "shared_kd"
    assert (model.student_decoder is model.decoder) is shared
    assert (model.student_joint.pred is model.joint.pred) is shared
    assert any(key.startswith("student_decoder.") for key in model.state_dict()) is not shared
    for part in (model.joint, model.student_joint):
        assert part.num_classes_with_blank == TOKENS + 1 and len(part.vocabulary) == TOKENS
    assert model.student_decoder.vocab_size == model.decoder.vocab_size == TOKENS
    assert model.loss.reduction == "mean_volume" and model.loss._blank == TOKENS
    assert all(term.parts.nemo_loss is model.loss for term in model.criteria.values() if term.spec.kind == "rnnt")
    assert model.loss._loss.fastemit_lambda == 0.01
    assert model.student_decoding.blank_id == TOKENS
    assert torch.equal(model.encoder.pre_encode.out.weight, encoders[0])
    assert torch.equal(model.student_encoder.pre_encode.out.weight, encoders[1])
    losses = train(model, [longer_batch(model, batch)] * 4, lr=3e-3)
    assert losses[-1] < losses[0]
    model.save_to(str(tmp_path / "pair.nemo"))
    restored = EncDecCoDERTBPEModel.restore_from(str(tmp_path / "pair.nemo"), map_location="cpu")
    assert restored.student_joint.num_classes_with_blank == TOKENS + 1
    assert restored.loss.reduction == "mean_volume"
    assert restored.student_model().joint.num_classes_with_blank == TOKENS + 1


def test_the_students_new_output_is_that_of_a_pair_built_with_the_vocabulary(make_model, larger_tokenizer):
    """Same names and shapes, and a mode and a dtype that are the pair's."""
    model = make_model(strategy="tandem_kd").train()
    model.change_vocabulary(str(larger_tokenizer), "bpe")
    fresh = make_model(strategy="tandem_kd", tokenizer={"dir": str(larger_tokenizer)})
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, fresh)]
    assert shapes[0] == shapes[1]
    assert model.student_joint.training and model.student_decoder.training


@pytest.mark.parametrize("strategy", ["static", "static_shared"])
def test_a_new_vocabulary_is_refused_with_a_frozen_teacher(shared_pair, larger_tokenizer, strategy):
    model = shared_pair(strategy=strategy)
    with pytest.raises(ValueError, match="change_vocabulary: the teacher is frozen.*teacher to co_trained"):
        model.change_vocabulary(str(larger_tokenizer), "bpe")
    assert model.joint.num_classes_with_blank == 33


def test_a_word_piece_tokenizer_of_another_type_is_refused(shared_pair, larger_tokenizer):
    with pytest.raises(ValueError, match="tokenizer type is 'wpe', wanted bpe"):
        shared_pair().change_vocabulary(str(larger_tokenizer), "wpe")


def test_a_folder_without_a_tokenizer_is_refused_and_the_pair_stays_as_it_was(shared_pair, tmp_path):
    model = shared_pair()
    with pytest.raises(ValueError, match="change_vocabulary: .*absent' has no tokenizer.model. Give its folder"):
        model.change_vocabulary(str(tmp_path / "absent"), "bpe")
    assert model.joint.num_classes_with_blank == 33


@torch.no_grad()
def test_prediction_gives_the_students_text(shared_pair, batch):
    model = shared_pair("tandem_kd").eval()
    model.joint.pred.weight.mul_(-100)  # untrained joints say nothing, or one piece for ever
    model.student_joint.pred.weight.mul_(100)
    sample_ids = torch.arange(4) + 7
    found, expected = (m.predict_step((*batch, sample_ids), 0) for m in (model, model.student_model()))
    teacher = model.teacher_model().predict_step((*batch, sample_ids), 0)
    assert [int(number) for number, _ in found] == [7, 8, 9, 10]
    texts, wanted, others = ([h.text for _, h in result] for result in (found, expected, teacher))
    assert texts == wanted != others and all(texts)
