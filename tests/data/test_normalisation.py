"""The form of a transcript in which errors are counted is the one that the tokenizer writes."""

import unicodedata

import pytest
import sentencepiece

from nemo_codert.data import Reason, screen_manifest, write_manifest
from nemo_codert.data.normalisation import composed, normalised, normaliser
from tests.data.test_manifest import entry, write_tone

TEXTS = ["ﬁne Été", "a…b", "Ｗide ½"]


@pytest.fixture(scope="module", params=["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "identity"])
def processor(request, tmp_path_factory) -> sentencepiece.SentencePieceProcessor:
    """A tokenizer with each of SentencePiece's rules, which can spell all of TEXTS and their decomposed forms."""
    folder = tmp_path_factory.mktemp(request.param)
    texts = [*TEXTS, *(unicodedata.normalize("NFD", text) for text in TEXTS)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    options = {"input": str(folder / "texts.txt"), "model_prefix": str(folder / "m"), "minloglevel": 3}
    size = {"vocab_size": 60, "hard_vocab_limit": False, "model_type": "bpe", "character_coverage": 1.0}
    sentencepiece.SentencePieceTrainer.train(**options, **size, normalization_rule_name=request.param)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


@pytest.mark.parametrize("text", [*TEXTS, *(unicodedata.normalize("NFD", text) for text in TEXTS), "", "  "])
def test_a_text_becomes_what_a_model_with_this_tokenizer_can_write(processor, text):
    written = processor.decode(processor.encode(text))
    assert normaliser(processor)(text).split() == composed(written).split()


def test_a_tokenizer_of_nemos_or_none_is_taken(tokenizer_dir):
    class Wrapped:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))

    assert normaliser(Wrapped())("ﬁne") == "fine"
    assert normaliser(None)("ﬁne") == "ﬁne" and normaliser(object()) is composed


def test_white_space_alone_changes_no_text():
    assert normalised([" a  b", "É"], composed) == [" a  b", "É"]


@pytest.mark.unit
def test_composed_and_decomposed_texts_of_one_sound_do_not_contradict_each_other(tmp_path):
    audio = write_tone(tmp_path / "a.wav")
    lines = [entry(audio, unicodedata.normalize(form, "été")) for form in ("NFC", "NFD")]
    assert len(screen_manifest(write_manifest(tmp_path / "m.json", lines), progress=False).usable) == 2
    cased = write_manifest(tmp_path / "cased.json", [entry(audio, "Yes"), entry(audio, "yes")])
    assert screen_manifest(cased, progress=False).counts() == {Reason.CONTRADICTION: 2}
    assert len(screen_manifest(cased, normalise=str.lower, progress=False).usable) == 2
