"""scripts/*.py as they are started: name, options, an example, and nothing heavy imported for the help."""

import importlib
import re
import runpy
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

COMMANDS = {
    "analyze_logits": "analyze",
    "benchmark": "benchmark",
    "cache_teacher": "cache",
    "check_deployment": "verify",
    "evaluate": "evaluate",
    "export_student": "export",
    "measure_latency": "latency",
    "plot_curves": "curves",
    "prepare_data": "prepare",
    "pseudo_label": "pseudo-label",
    "transcribe_streaming": "stream",
}
OPTIONS = {
    "analyze_logits": "--model --checkpoints --teacher --branch --manifest --output-dir --top-k --utterances "
    "--max-utterances --batch-size",
    "benchmark": "--output-dir --only --device --threads --rounds --slow-rounds --skip-memory --shapes --vocabularies "
    "--lattice --lattices --lattices-vocabulary --largest-lattice --joint-shapes --batch-size --seconds --tokens "
    "--vocabulary --teacher --student --pred-hidden --joint-hidden --decoding-batch-size --decoding-frames",
    "cache_teacher": "--teachers --manifest --output --keep --at --combine --prior --temperature --group --dtype "
    "--wer --batch-size --jobs",
    "check_deployment": "--model --manifest --output-dir --branch --limit --show --checks",
    "evaluate": "--model --manifest --branch --decoding --batch-size --sizes --output",
    "export_student": "--model --output --format --joint --branch --int8 --wer --license --language --dataset --push",
    "measure_latency": "--model --teacher --manifest --batch-size",
    "plot_curves": "--run --output --names",
    "pseudo_label": "--model --manifest --output --branch --min-confidence --agree-with --max-disagreement "
    "--batch-size",
    "prepare_data": "{synthetic,fsdd,words,kaldi,mixtures,librispeech}",
    "transcribe_streaming": "--model --manifest --audio --pipeline --set --config --output",
}
HEAVY = ("torch", "nemo", "numpy", "lhotse", "lightning", "matplotlib", "omegaconf")


def module_of(command: str) -> str:
    return f"nemo_codert.cli.{command.replace('-', '_')}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_has_its_name_and_options_and_its_help_imports_nothing_heavy(name):
    code = (
        f"import runpy, sys; sys.argv = ['{name}.py', '--help']\n"
        f"try: runpy.run_path({str(REPOSITORY / 'scripts' / name)!r} + '.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not {{*{HEAVY}}} & set(sys.modules), {{*{HEAVY}}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py [-h]")
    usage = done.stdout.split("\n\n")[0]
    assert all(re.search(rf"[\s[(]{option}\b|{re.escape(option)}", usage) for option in OPTIONS[name].split())
    assert f"\nexamples:\n  codert {COMMANDS[name]} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_an_installed_command_is_called_by_its_own_name_and_has_no_other_option(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"codert {COMMANDS[name]}"])
    text = importlib.import_module(module_of(COMMANDS[name])).parser().format_help()
    assert text.startswith(f"usage: codert {COMMANDS[name]} [-h]")
    listed = set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE))
    assert listed == {option for option in OPTIONS[name].split() if option.startswith("--")}


def test_every_example_names_its_command_and_is_understood(monkeypatch):
    for name, command in COMMANDS.items():
        module = importlib.import_module(module_of(command))
        examples = [line.split() for line in module.EXAMPLES.replace("\\\n", " ").strip().splitlines()]
        assert examples, name
        for program, subcommand, *arguments in examples:
            assert (program, subcommand) == ("codert", command)
            module.parser().parse_args(arguments)


def test_a_script_ends_with_the_status_of_its_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export_student.py", "--model", "absent.nemo", "--output", "student.nemo"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / "scripts" / "export_student.py"), run_name="__main__")
    assert end.value.code == 2 and "--model is absent.nemo: no such file" in capsys.readouterr().err
