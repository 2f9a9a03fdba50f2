"""BPE tokenizers trained through NeMo."""

import random

import pytest
import sentencepiece

from nemo_codert.data.tokenizer import TOKENIZER_FILES, train_tokenizer

pytestmark = pytest.mark.unit

WORDS = "turn on the kitchen light thirteen thirty Bedroom".split()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=5)) for _ in range(100)]


@pytest.mark.nemo
def test_the_folder_loads_in_nemo_and_keeps_case(tmp_path, texts):
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    folder = train_tokenizer(texts, tmp_path / "tokenizer", 32)
    tokenizer = SentencePieceTokenizer(str(folder / "tokenizer.model"))
    assert tokenizer.vocab_size == 32
    assert tokenizer.ids_to_text(tokenizer.text_to_ids("the Bedroom light")) == "the Bedroom light"
    assert len((folder / "vocab.txt").read_text().splitlines()) == 31  # NeMo leaves the unknown piece out
    assert sorted(path.name for path in folder.iterdir()) == sorted(TOKENIZER_FILES)


@pytest.mark.nemo
def test_equal_texts_give_equal_files(tmp_path, texts):
    first, second = (train_tokenizer(texts, tmp_path / name, 32) for name in ("first", "second"))
    for name in TOKENIZER_FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.nemo
def test_an_existing_tokenizer_is_replaced(tmp_path, texts):
    train_tokenizer(texts, tmp_path, 32)
    train_tokenizer(texts, tmp_path, 40)
    assert sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).vocab_size() == 40


@pytest.mark.nemo
def test_the_model_tells_nothing_of_the_folder_it_was_made_in(tmp_path, texts):
    content = (train_tokenizer(texts, tmp_path, 32) / "tokenizer.model").read_bytes()
    assert b"texts.txt" not in content and b"/trained" not in content


@pytest.mark.nemo
def test_training_says_nothing(tmp_path, texts, capfd):
    train_tokenizer(texts, tmp_path / "warm", 32)  # the import of NeMo is not ours to silence
    capfd.readouterr()
    train_tokenizer(texts, tmp_path / "tokenizer", 32)
    assert capfd.readouterr() == ("", "")


@pytest.mark.nemo
def test_too_large_a_vocabulary_names_the_largest_that_works(tmp_path, texts):
    with pytest.raises(ValueError, match=r"vocab_size is 500, the largest these texts support is (\d+)") as error:
        train_tokenizer(texts, tmp_path, 500)
    assert list(tmp_path.iterdir()) == []
    largest = int(str(error.value).split("support is ")[1].split(":")[0])
    train_tokenizer(texts, tmp_path, largest)


@pytest.mark.nemo
def test_too_small_a_vocabulary_names_the_smallest_that_works(tmp_path, texts):
    with pytest.raises(ValueError, match=r"vocab_size is 3, .*: use (\d+) or more") as error:
        train_tokenizer(texts, tmp_path, 3)
    smallest = int(str(error.value).split("use ")[1].split(" ")[0])
    train_tokenizer(texts, tmp_path, smallest)


def test_texts_without_a_word_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", "  "], tmp_path, 32)
