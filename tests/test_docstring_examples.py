"""The examples in docstrings run and print what they show, and every public name has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import nemo_codert

ROOT = Path(nemo_codert.__file__).resolve().parents[1]
FILES = sorted((ROOT / "nemo_codert").rglob("*.py"))
ROOMS = ("losses", "modules", "models", "criteria", "teachers", "data")
# Rooms without `__all__`: importing the room imports none of its modules, and users import these functions from there.
CALLS = {
    "training.run": ("prepare", "train"),
    "training.finite_guard": ("FiniteGuard",),
    "training.resume": ("ResumeState",),
    "models.new_pair": ("new_pair",),
    "models.open_model": ("open_model",),
    "config.checked": ("checked_config",),
    "compare.run": ("compare",),
    "analysis.logits": ("analyze_logits",),
    "analysis.latency": ("measure_latency",),
    "benchmark.run": ("run_benchmark",),
    "benchmark.trained_models": ("evaluate_models",),
    "export.student_files": ("export_student",),
    "evaluation.word_errors": ("WordErrors", "word_errors", "total_word_errors"),
    "evaluation.bootstrap": ("relative_reduction", "error_rate_interval"),
    "evaluation.learning_curves": ("largest_difference",),
    "data.tokenizer": ("train_tokenizer",),
}


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def public_names() -> dict[str, object]:
    """Public names of the package and of its rooms' `__all__`, with the objects."""
    names = {name: getattr(nemo_codert, name) for name in nemo_codert._PUBLIC_NAMES}
    for room in ROOMS:
        module = importlib.import_module(f"nemo_codert.{room}")
        names |= {name: getattr(module, name) for name in module.__all__}
    for path, calls in CALLS.items():
        module = importlib.import_module(f"nemo_codert.{path}")
        names |= {f"{path}.{name}": getattr(module, name) for name in calls}
    return names


WITH_EXAMPLES = [module_name(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_show(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.attempted and not results.failed


def test_every_public_name_has_an_example_and_sections():
    bare, incomplete = [], []
    for name, value in public_names().items():
        text = inspect.getdoc(value) or ""
        if "Example:" not in text or ">>> " not in text:
            bare.append(name)
        takes_arguments = bool(inspect.signature(value).parameters)
        if takes_arguments and "Args:" not in text or not (inspect.isclass(value) or "Returns:" in text):
            incomplete.append(name)
    assert not bare and not incomplete
