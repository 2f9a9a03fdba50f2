"""What a script says and how it ends where the user's options, files or folders are at fault."""

import os
import platform
import subprocess
import sys

import pytest

from nemo_codert.cli.console import exit_status
from nemo_codert.cli.main import main

pytestmark = pytest.mark.unit

FAULTS_OF_SECOND_BLOCK = """
import resource
from nemo_codert.training.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
block = bytearray(2**24)
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def ends(work, capsys) -> tuple[int, str]:
    return exit_status(work), capsys.readouterr().err


def refuse() -> None:
    raise ValueError("--model is x: no such file")


def test_a_fault_is_one_line_and_exit_status_2(capsys):
    assert ends(lambda: None, capsys) == (0, "")
    assert ends(refuse, capsys) == (2, "error: --model is x: no such file\n")


def test_a_path_that_the_system_refuses_is_named_without_a_traceback(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for work, path, reason in (
        (lambda: (file / "below").mkdir(parents=True), file / "below", "Not a directory"),
        (file.mkdir, file, "File exists"),
        ((tmp_path / "absent" / "o.nemo").touch, tmp_path / "absent" / "o.nemo", "No such file or directory"),
    ):
        expected = f"error: {path}: {reason}. Give a path that can be read or written\n"
        assert ends(work, capsys) == (2, expected)


def test_an_error_of_the_system_without_a_path_is_told_as_it_is(capsys):
    def stop() -> None:
        raise OSError("no room")

    assert ends(stop, capsys) == (2, "error: no room\n")


@pytest.mark.parametrize(
    "command, module",
    [
        (["curves", "--run", "a=b", "--output", "c.png"], "matplotlib"),
        (["analyze", "--model", "a.nemo", "--manifest", "b.json", "--output-dir", "c"], "jinja2"),
        (["prepare", "synthetic", "--output-dir", "c"], "espeakng_loader"),
        (["compare", "--data-dir", "a", "--output-dir", "c", "--strategies", "student", "static"], "matplotlib"),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(command, module, monkeypatch, capsys):
    monkeypatch.setattr("nemo_codert.config.arguments.find_spec", lambda name: None if name == module else name)
    assert main(command) == 2
    line = f'error: {module} is not installed: pip install "nemo_codert[scripts]" (in a checkout: ".[scripts]")'
    assert line in capsys.readouterr().err


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(KeyError):
        exit_status(lambda: {}["absent"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_that_was_freed_is_kept_and_used_again_unless_the_user_says_otherwise():
    faults = []
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    asked = plain | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    for keep, environment in ((False, plain), (True, plain), (True, asked)):
        command = [sys.executable, "-c", FAULTS_OF_SECOND_BLOCK.format(keep=keep)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        faults.append(int(run.stdout))
    assert faults[1] < min(faults[0], faults[2]) / 4, faults  # pages of up to 2 MB
