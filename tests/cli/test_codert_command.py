"""The command `codert`: its help without anything heavy, its subcommands, and what a mistyped one gets."""

import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

import nemo_codert
from nemo_codert.cli import main as command
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

HEAVY = {"torch", "nemo", "numpy", "omegaconf", "hydra", "lightning", "sentencepiece", "yaml"}
WANTED = (
    "new prepare check train cache evaluate export verify compare analyze latency stream benchmark quickstart configs"
)


@pytest.fixture
def echo(monkeypatch) -> list[list[str]]:
    """A subcommand `echo` that keeps what it was called with: the program's arguments, its own, the module started."""
    calls: list[list[str]] = []

    def main(argv: list[str]) -> int:
        calls.append([*sys.argv, "|", *argv, "|", sys.modules["__main__"].__spec__.name])
        return 3

    module = ModuleType("nemo_codert.cli.echo")
    module.main, module.__spec__ = main, SimpleNamespace(name=module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command.SUBCOMMANDS, "echo", ("echo", "repeat"))
    return calls


def test_help_lists_every_subcommand_and_imports_nothing_heavy():
    code = f"""import sys
from nemo_codert.cli.main import main
assert main(["--help"]) == 0
print(sorted({HEAVY} & set(sys.modules)), len(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    *lines, last = done.stdout.splitlines()
    heavy, _, modules = last.rpartition(" ")
    assert heavy == "[]"
    assert int(modules) < 300  # 92 in Python 3.11; importing omegaconf alone makes them 400
    listed = [found[1] for line in lines if (found := re.match(r"  ([a-z-]+)  +\w", line))]
    assert listed == [*command.SUBCOMMANDS]
    assert set(WANTED.split()) <= set(listed)


def test_both_modules_are_the_command():
    for module in ("nemo_codert", "nemo_codert.cli.main"):
        command_line = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command_line, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        assert done.stdout == f"codert {nemo_codert.__version__}\n"


def test_without_a_subcommand_there_is_help(capsys):
    assert command.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: codert SUBCOMMAND")


@pytest.mark.parametrize("given, near", [("trian", "train"), ("evalaute", "evaluate"), ("--helpp", "compare")])
def test_an_unknown_subcommand_gets_the_nearest_name(given, near, capsys):
    assert command.main([given]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: codert has no subcommand {given!r}, the nearest is ")
    assert output.err.count("\n") == 1
    if not given.startswith("-"):
        assert repr(near) in output.err


def test_a_subcommand_runs_as_a_program_of_its_own(echo):
    before = sys.argv, sys.modules["__main__"].__spec__
    assert command.main(["echo", "--flag", "x=1"]) == 3
    # Lightning starts the other processes of a run from these: python -m nemo_codert.cli.echo --flag x=1
    assert echo == [["codert echo", "--flag", "x=1", "|", "--flag", "x=1", "|", "nemo_codert.cli.echo"]]
    assert (sys.argv, sys.modules["__main__"].__spec__) == before


def test_arguments_are_this_processs_by_default(echo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["codert", "echo", "x"])
    assert command.main() == 3
    assert echo[0][:2] == ["codert echo", "x"]


def test_the_process_is_itself_again_after_an_error(echo, monkeypatch):
    before = sys.argv

    def fail(argv: list[str]) -> int:
        raise SystemExit("error: no")

    monkeypatch.setattr(sys.modules["nemo_codert.cli.echo"], "main", fail)
    with pytest.raises(SystemExit, match="error: no"):
        command.main(["echo"])
    assert sys.argv is before


@pytest.mark.parametrize("name", [name for name in command.SUBCOMMANDS if name != "train"])  # Hydra reads that one's
def test_the_help_of_a_subcommand_is_complete(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert re.search(rf"^usage: codert {name}\b", text)
    assert re.search(rf"^ +codert {name} ", text, re.MULTILINE), "no example"


def test_the_help_of_training_has_an_example():
    done = subprocess.run(
        [sys.executable, "-m", "nemo_codert", "train", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "codert train " in done.stdout
