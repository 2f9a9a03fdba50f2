"""Plain technical English in code, docs and messages: the rules that can be counted.

Docstrings of functions begin with a verb, trailing comments with a noun or verb, code is not a person, one term each.
`OPEN` has the number of faults that a room may still have; it only shrinks.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
CODE = sorted([*(ROOT / "nemo_codert").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
# Not docs/study: published tables are rebuilt byte by byte.
TEXTS = [*sorted(path for path in (ROOT / "docs").rglob("*.md") if "study" not in path.parts), ROOT / "README.md"]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))

NOT_FIRST = "What Of The How Where Why Which When Whether Whose Who A An One Every Everything Without".split()
NO_THINGS = "What Of How Where Why When Whether Who".split()  # first words of modules' and classes' docstrings
# First words that end like the third person of a verb, but for these nouns and names.
THIRD_PERSON = re.compile(r"(?!(?:As|Pass|Process|Compress|Address|Press|Cross|Discuss)$)[A-Z][a-z]+s$")
PREPOSITIONS = (
    "of for with in by from to as at on under until besides beside before after between beyond over up without"
).split()
BARE = re.compile(rf"#\s*(?:{'|'.join(PREPOSITIONS)})\s", re.IGNORECASE)
# "is no longer" and "there is no" are plain English; "is no X" for "is not an X" is not.
NO_NOUN = re.compile(r"(?<!there )(?<!There )\b(?:is|are|was) no (?!more\b|less\b|\w+er\b)\w+")
PERSON = re.compile(
    r"\b(?:strangers?|whoever|nobody|somebody|hears?|heard|says|said|tells|told|knows|asks|asked|handed)\b",
    re.IGNORECASE,
)
TERMS = re.compile(r"\banew\b", re.IGNORECASE)

# (rule, room) -> faults that are not yet mended.
OPEN: dict[tuple[str, str], int] = {
    ("first word", "models"): 8,
    ("first word", "scripts"): 13,
    ("bare preposition", "scripts"): 3,
    ("is no", "models"): 4,
    ("is no", "scripts"): 1,
    ("person", "analysis"): 1,
    ("person", "compare"): 2,
    ("person", "docs"): 8,
    ("person", "evaluation"): 1,
    ("person", "models"): 2,
    ("person", "scripts"): 12,
    ("one term", "scripts"): 4,
}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "nemo_codert" and len(parts) > 2 else parts[0] if len(parts) > 1 else parts[-1]


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
            if word in NOT_FIRST or is_noun or not word[0].isupper() or THIRD_PERSON.match(word):
                yield line, f"{node.name}: {text.splitlines()[0]}"
        elif word in NO_THINGS:
            yield line, text.splitlines()[0]


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def bare_comments(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        yield from ((line, text) for line, text in comments(path) if BARE.match(text))
    else:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        yield from ((line, found[0]) for line, text in lines if (found := re.search(rf"\s{BARE.pattern}.*", text)))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield docstrings, comments and texts of a file by line; of Markdown all but blocks of code."""
    if path.suffix == ".py":
        yield from comments(path)
        kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type in kinds:
                # Names in back quotes and fields of formatted texts are identifiers.
                text = re.sub(r"`[^`\n]*`|\{[^{}\n]*\}", "", token.string)
                yield from (
                    (token.start[0] + i, line) for i, line in enumerate(text.split("\n")) if " " in line.strip()
                )
        return
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`", "", line)


def matches(pattern: re.Pattern[str], path: Path) -> Iterator[tuple[int, str]]:
    yield from ((number, line.strip()) for number, line in prose(path) if pattern.search(line))


RULES = {
    "first word": (
        "a function's docstring begins with a verb (Return, Check, Write), a class's with the thing",
        wrong_first_words,
        CODE,
    ),
    "bare preposition": ("a comment can be read alone", bare_comments, [*CODE, *CONFIGS]),
    "is no": ("'is not a', not 'is no'", lambda path: matches(NO_NOUN, path), [*CODE, *TEXTS, *CONFIGS]),
    "person": ("code is not a person", lambda path: matches(PERSON, path), [*CODE, *TEXTS, *CONFIGS]),
    "one term": ("'from scratch', not 'anew'", lambda path: matches(TERMS, path), [*CODE, *TEXTS, *CONFIGS]),
}


@pytest.mark.parametrize("name", RULES)
def test_the_words_of_code_and_docs_keep_to_the_rule(name):
    rule, find, paths = RULES[name]
    found = [(room_of(path), path, line, text) for path in paths for line, text in find(path)]
    counts = Counter(room for room, *_ in found)
    over = {room for room, count in counts.items() if count > OPEN.get((name, room), 0)}
    listed = [f"{path.relative_to(ROOT)}:{line}: {text[:100]}" for room, path, line, text in found if room in over]
    assert not over, f"{rule}:\n  " + "\n  ".join(listed)
