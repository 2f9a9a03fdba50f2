"""README.md, CONTRIBUTING.md and docs: their commands have options that exist, and what they name is there.

`make docs` checks the links between pages and the docstrings behind the API pages.
"""

import argparse
import ast
import importlib
import re
import shlex

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.shell_blocks import blocks, shell_commands, shell_lines

pytestmark = pytest.mark.unit

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
RUN = ("README.md", "training.md")  # by tests/scripts/test_readme_commands.py
# Page -> why its commands are not run; their options and keys are checked here.
NOT_RUN = {
    "CONTRIBUTING.md": "make targets",
    "cached_targets.md": "they need trained teachers; tests/evaluation and tests/training run tiny ones",
    "configuration.md": "tests, which make test runs",
    "deployment.md": "they need trained students; tests/export, tests/deploy and tests/scripts run tiny ones",
    "index.md": "the quickstart: tests/scripts/test_quickstart.py",
    "loss_numerics.md": "tests, which make test runs, and benchmarks of minutes",
    "methods.md": "trainings of minutes; tests/config/test_method_strategies.py makes a step of every strategy",
    "performance.md": "benchmarks of minutes to hours; tests/scripts/test_benchmark.py runs them at tiny sizes",
    "reliability.md": "the campaign of make test-reliability, and parts of commands",
    "results.md": "trainings of minutes to days; tests/scripts/test_compare_for_real.py runs tiny ones",
    "streaming.md": "trainings of minutes; tests/scripts run tiny ones",
}
HYDRA = ("train", "check")
TO_FILL_IN = re.compile(r"\.\.\.|\$")  # a part of a command, or a variable of the shell


def name_of(page) -> str:
    return page.name


def codert_commands(page) -> list[list[str]]:
    """Arguments of every `codert` of a page, those in loops and after settings of the environment too."""
    lines = shell_lines(page.read_text(encoding="utf-8"))
    found = (re.fullmatch(r"(?:\w+=\S+ )*codert (.+)", line) for line in lines)
    return [shlex.split(line[1], comments=True) for line in found if line]


ALL = sorted({(name_of(page), shlex.join(words)) for page in PAGES for words in codert_commands(page)})


def commands(hydra: bool) -> list:
    """`pytest.param`s of all commands that end in Hydra, or of all others."""
    chosen = [(page, command) for page, command in ALL if (command.split()[0] in HYDRA) == hydra]
    return [pytest.param(command, id=f"{page}: {command[:60]}") for page, command in chosen]


def test_every_page_with_commands_is_run_or_listed_with_the_reason():
    shown = {name_of(page) for page in PAGES if shell_commands(page.read_text(encoding="utf-8"))}
    assert shown - {*RUN} <= NOT_RUN.keys()
    assert {*NOT_RUN} <= {name_of(page) for page in PAGES}


class Parsed(BaseException):
    """Raised in place of what a command does once its options are parsed."""


@pytest.mark.parametrize("command", commands(hydra=False))
def test_a_command_has_options_that_exist(command, monkeypatch):
    name, *arguments = shlex.split(command)
    if name == "--help":
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        importlib.import_module(f"nemo_codert.cli.{name.replace('-', '_')}").main(arguments)


@pytest.mark.parametrize("command", commands(hydra=True))
def test_the_keys_of_a_training_command_are_those_of_its_config(command):
    from hydra import compose, initialize_config_dir

    words = [word for word in shlex.split(command)[1:] if not TO_FILL_IN.search(word)]
    text = " ".join(words)
    config = re.search(r"--config-name[= ](\S+)", text)
    assert config, "no --config-name"
    if "--config-dir" in words:  # a file that codert new writes; its keys are those of the base
        assert words[words.index("--config-dir") + 1] == "my_pair"
    name = "base" if "--config-dir" in words else config[1]
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    if name == "base":
        overrides = [word for word in overrides if not word.startswith("strategy=")]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        assert compose(name, overrides)


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", text))
    assert {"quickstart", "test", "docs"} <= named
    assert not [target for target in named if f"\n{target}:" not in makefile]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:nemo_codert|scripts|conf|docs|tests)/[\w./-]+?)`", text))
    names |= {f"tests/{name}" for name in re.findall(r"pytest (?:-\S+ )*tests/([\w./-]+)", text)}
    missing = [name for name in sorted(names) if not (REPOSITORY / name).exists()]
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.nemo
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_a_page_is_valid_and_names_what_exists(page):
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("nemo_codert"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_architecture_has_every_room_and_no_other():
    tree = (DOCS / "architecture.md").read_text(encoding="utf-8").split("```\nnemo_codert/\n")[1].split("\nconf/")[0]
    named = set(re.findall(r"^  (\w+(?:/|\.py))", tree, re.MULTILINE))
    package = REPOSITORY / "nemo_codert"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == (rooms - {"conf/"}) | {"nemo_compat.py"}
    inner = set(re.findall(r"^    (\w+)/", tree, re.MULTILINE))
    assert inner == {path.parent.name for path in package.glob("*/*/__init__.py")}


def test_every_page_is_in_the_navigation_and_every_api_page_has_its_module():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/]+\.md", str(site["nav"])))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "study" not in path.parts}
    assert named == pages
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    modules = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    files = [REPOSITORY / name.replace(".", "/") for name in modules]
    missing = [path.name for path in files if not (path.is_dir() or path.with_suffix(".py").is_file())]
    assert len(modules) > 10 and not missing
