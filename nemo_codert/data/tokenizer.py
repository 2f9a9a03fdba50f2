"""BPE tokenizers in the folder layout NeMo loads: `tokenizer.model`, `vocab.txt`, `tokenizer.vocab`.

NeMo is imported inside the function, which keeps the import of this module quick.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_codert.files.atomic import whole_folder

TOKENIZER_FILES = ("tokenizer.vocab", "vocab.txt", "tokenizer.model")


def train_tokenizer(texts: Iterable[str], output_dir: str | Path, vocab_size: int) -> Path:
    """Train a BPE tokenizer of exactly `vocab_size` pieces (with the unknown piece) through NeMo; return its folder.

    Equal texts give equal files; an existing tokenizer is replaced.

    Args:
        texts: transcripts, case kept.
        output_dir: folder of the tokenizer.
        vocab_size: number of pieces.

    Returns:
        `output_dir` as a Path.

    Raises:
        ValueError: no text, or texts that support fewer or need more pieces than `vocab_size`.

    Example:
        >>> folder = train_tokenizer(["put the small lamp to the bed"], tempfile.mkdtemp(), vocab_size=24)
        >>> sorted(path.name for path in folder.iterdir())
        ['tokenizer.model', 'tokenizer.vocab', 'vocab.txt']
    """
    output_dir = Path(output_dir)
    lines = [text.strip() for text in texts if text.strip()]
    if not lines:
        raise ValueError(f"no text to train the tokenizer in {output_dir} on: every transcript is empty.")
    with tempfile.TemporaryDirectory(prefix="tokenizer_") as folder:
        (Path(folder) / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        # A new folder, because NeMo's function keeps a model that is there.
        trained = _train_with_nemo(Path(folder) / "texts.txt", Path(folder) / "trained", vocab_size)
        _check_size(trained, vocab_size)
        model_file = trained / "tokenizer.model"
        model_file.write_bytes(without_paths(model_file.read_bytes()))  # two equal trainings then give equal files
        with whole_folder(output_dir, last=".model") as writing:
            for name in TOKENIZER_FILES:
                shutil.copyfile(trained / name, writing / name)
    return output_dir


def _train_with_nemo(text_file: Path, output_dir: Path, vocab_size: int) -> Path:
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)  # NeMo's telemetry logs at import
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    try:
        with _quiet():
            create_spt_model(
                data_file=str(text_file),
                vocab_size=vocab_size,
                sample_size=-1,
                do_lower_case=False,
                tokenizer_type="bpe",
                output_dir=str(output_dir),
            )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocab_size)) from error
    return output_dir


def _explain(message: str, vocab_size: int) -> str:
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_small:
        return (
            f"vocab_size is {vocab_size}, but the texts have {too_small[1]} different characters (with the unknown "
            f"piece): use {too_small[1]} or more."
        )
    too_large = re.search(r"set it to a value <= (\d+)", message)
    if too_large:
        return f"vocab_size is {vocab_size}, the largest these texts support is {too_large[1]}: use that or less."
    return f"vocab_size {vocab_size}: sentencepiece could not train a tokenizer ({message})."


def _check_size(folder: Path, vocab_size: int) -> None:
    import sentencepiece

    got = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    if got < vocab_size:  # NeMo trains with hard_vocab_limit=false: a size too large shrinks silently
        raise ValueError(f"vocab_size is {vocab_size}, the largest these texts support is {got}: use {got} or less.")


def without_paths(model_proto: bytes) -> bytes:
    """Return a SentencePiece model without the paths of its training folder, which sentencepiece writes into it."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(model_proto)
    del model.trainer_spec.input[:]
    model.trainer_spec.model_prefix = "tokenizer"
    return model.SerializeToString(deterministic=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence sentencepiece's progress (some 250 lines) and NeMo's information lines."""
    import sentencepiece
    from nemo.utils import logging as nemo_logging

    verbosity = nemo_logging.get_verbosity()
    nemo_logging.set_verbosity(nemo_logging.WARNING)
    sentencepiece.set_min_log_level(3)
    try:
        yield
    finally:
        sentencepiece.set_min_log_level(0)
        nemo_logging.set_verbosity(verbosity)
