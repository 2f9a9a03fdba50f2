"""Form of a transcript in which errors are counted: the one that the model's tokenizer writes.

SentencePiece normalises a text before it cuts it into pieces (by default NFKC, with `nmt_nfkc_cf` lower case too), so
that a model can only write the normalised form. Validation compares token ids, and with them normalised texts; counts
on texts have to normalise their references in the same way. Imports neither torch nor NeMo.
"""

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

WORD_START = "\u2581"  # SentencePiece's mark in place of a blank


def composed(text: str) -> str:
    """Return a text with composed characters (Unicode NFC): the form without a tokenizer.

    Args:
        text: any text.

    Example:
        >>> composed("e\\u0301te\\u0301") == "\\u00e9t\\u00e9"
        True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def normaliser(tokenizer: Any) -> Callable[[str], str]:
    """Return the function that brings a text into the form in which a model writes it.

    Args:
        tokenizer: a SentencePiece processor, or a tokenizer of NeMo's, which holds one as `tokenizer`. None, or one of
            another kind: `composed`.

    Returns:
        A function of a text; its result has composed characters.

    Example:
        >>> normaliser(None)("e\\u0301") == "\\u00e9"
        True
    """
    for processor in (tokenizer, getattr(tokenizer, "tokenizer", None)):
        if callable(getattr(processor, "normalize", None)) and hasattr(processor, "unk_id"):
            return lambda text: composed(processor.normalize(text).replace(WORD_START, " ").strip())
    return composed


def normalised(texts: Iterable[str], normalise: Callable[[str], str]) -> list[str]:
    """Return texts in their normalised form; one that does not differ by more than white space is left as it is.

    Args:
        texts: any texts. normalise: see `normaliser`.

    Example:
        >>> normalised(["Yes  please", "Yes"], lambda text: text.lower().replace("  ", " "))
        ['yes please', 'yes']
        >>> normalised(["yes  please"], lambda text: text.replace("  ", " "))
        ['yes  please']
    """
    return [text if (form := normalise(text)).split() == text.split() else form for text in texts]
