"""The examples in docstrings run and print what they show, and every public name has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import nemo_codert

ROOT = Path(nemo_codert.__file__).resolve().parents[1]
FILES = sorted((ROOT / "nemo_codert").rglob("*.py"))
ROOMS = ("losses", "modules", "models", "criteria", "teachers", "training")
WITHOUT_EXAMPLE = {"EncDecCoDERTBPEModel", "student_config", "teacher_config"}  # only ever shorter


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def public_names() -> dict[str, object]:
    """Public names of the package and of its rooms' `__all__`, with the objects."""
    names = {name: getattr(nemo_codert, name) for name in nemo_codert._PUBLIC_NAMES}
    for room in (room for room in ROOMS if (ROOT / "nemo_codert" / room).is_dir()):
        module = importlib.import_module(f"nemo_codert.{room}")
        names |= {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    return names


WITH_EXAMPLES = [module_name(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_show(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.attempted and not results.failed


def test_every_public_name_has_an_example_and_sections():
    bare, incomplete = set(), []
    for name, value in public_names().items():
        text = inspect.getdoc(value) or ""
        if "Example:" not in text or ">>> " not in text:
            bare.add(name)
        elif "Args:" not in text or not (inspect.isclass(value) or "Returns:" in text):
            incomplete.append(name)
    assert bare == WITHOUT_EXAMPLE and not incomplete
