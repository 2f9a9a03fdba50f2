"""Plain technical English in code, docs and messages: the rules that can be counted.

Docstrings of functions begin with a verb, trailing comments with a noun or verb, code is not a person, one term each.
`PUBLISHED` has the texts that stay as they are.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
CODE = sorted([*(ROOT / "nemo_codert").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
# Not docs/study: published tables are rebuilt byte by byte.
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "study" not in path.parts)
TEXTS = [*PAGES, ROOT / "docs/tutorial.ipynb", ROOT / "README.md"]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))

NOT_FIRST = (
    "What Of The How Where Why Which When Whether Whose Who A An One Every Everything Without "
    "At In On Before After True False"
).split()
NO_THINGS = "What Of How Where Why When Whether Who".split()  # first words of modules' and classes' docstrings
# First words that end like the third person of a verb, but for these nouns and names.
THIRD_PERSON = re.compile(r"(?!(?:As|Pass|Process|Compress|Address|Press|Cross|Discuss)$)[A-Z][a-z]+s$")
PREPOSITIONS = (
    "of for with in by from to as at on under until besides beside before after between beyond over up without"
).split()
BARE = re.compile(rf"#\s*(?:{'|'.join(PREPOSITIONS)})\s", re.IGNORECASE)
# "is no longer" and "there is no" are plain English; "is no X" for "is not an X" is not.
NO_NOUN = re.compile(r"(?<!there )(?<!There )\b(?:is|are|was) no (?!longer\b|more\b)\w+")
PERSON = re.compile(
    r"\b(?:strangers?|whoever|whom|nobody|somebody|everybody|anybody|hears?|heard|says|said|tells|told|knows|asks|asked"
    r"|handed|wants|thinks|believes|remembers|complains)\b|\bwho (?:runs|reads|writes|calls|computes)\b",
    re.IGNORECASE,
)
TERMS = re.compile(r"\b(?:anew|go(?:es)? on|went on|for ever|to speak of|comes by)\b", re.IGNORECASE)

# Notes below every published table in docs/study, which is rebuilt byte by byte from its results.
PUBLISHED = {
    "nemo_codert/compare/tables.py": (
        "decoded as the config says, of the checkpoint with the best d",
        "over recordings of unnamed ones, says nothing of other speakers.",
    )
}


def docstrings(path: Path) -> Iterator[tuple[ast.AST, int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, node.body[0].lineno, text


def first_word(text: str) -> str:
    return text.split()[0].rstrip(",.:;")


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def wrong_first_words(path: Path) -> Iterator[tuple[int, str]]:
    for node, line, text in docstrings(path):
        word = first_word(text)
        if isinstance(node, ast.FunctionDef) and not is_property(node):
            is_noun = text.split()[1:2] == ["of"]  # "Number of ..."
            if word in NOT_FIRST or is_noun or not word[0].isupper() or THIRD_PERSON.match(word) or "'" in word:
                yield line, f"{node.name}: {text.splitlines()[0]}"
        elif word in NO_THINGS:
            yield line, text.splitlines()[0]


@cache
def tokens(path: Path) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokens(path):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def bare_comments(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        yield from ((line, text) for line, text in comments(path) if BARE.match(text))
    else:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        yield from ((line, found[0]) for line, text in lines if (found := re.search(rf"\s{BARE.pattern}.*", text)))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield docstrings, comments and texts of a file by line; Markdown without blocks of code, notebooks by cell."""
    if path.suffix == ".py":
        yield from comments(path)
        kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokens(path):
            if token.type in kinds:
                # Names in back quotes and fields of formatted texts are identifiers.
                text = re.sub(r"`[^`\n]*`|\{[^{}\n]*\}", "", token.string)
                yield from (
                    (token.start[0] + i, line) for i, line in enumerate(text.split("\n")) if " " in line.strip()
                )
        return
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield from (
            (number, re.sub(r"`[^`]*`", "", line)) for number, cell in enumerate(cells) for line in cell["source"]
        )
        return
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`", "", line)


def matches(pattern: re.Pattern[str], path: Path) -> Iterator[tuple[int, str]]:
    published = PUBLISHED.get(str(path.relative_to(ROOT)), ())
    for number, line in prose(path):
        if pattern.search(line) and not any(text in line for text in published):
            yield number, line.strip()


RULES = {
    "first word": (
        "a function's docstring begins with a verb (Return, Check, Write), a class's with the thing",
        wrong_first_words,
        CODE,
    ),
    "bare preposition": ("a comment can be read alone", bare_comments, [*CODE, *CONFIGS]),
    "is no": ("'is not a', not 'is no'", lambda path: matches(NO_NOUN, path), [*CODE, *TEXTS, *CONFIGS]),
    "person": ("code is not a person", lambda path: matches(PERSON, path), [*CODE, *TEXTS, *CONFIGS]),
    "one term": (
        "'from scratch' and 'resume', not 'anew' and 'go on'",
        lambda path: matches(TERMS, path),
        [*CODE, *TEXTS, *CONFIGS],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_the_words_of_code_and_docs_keep_to_the_rule(name):
    rule, find, paths = RULES[name]
    found = [f"{path.relative_to(ROOT)}:{line}: {text[:100]}" for path in paths for line, text in find(path)]
    assert not found, f"{rule}:\n  " + "\n  ".join(found)


def test_the_published_texts_are_still_there():
    for name, texts in PUBLISHED.items():
        assert all(text in (ROOT / name).read_text(encoding="utf-8") for text in texts)
