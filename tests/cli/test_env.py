"""`codert env`: what a report of a fault needs, and nothing of the user."""

import getpass
import os
import re
import socket
import subprocess
import sys
import tomllib

import pytest

import nemo_codert
from nemo_codert.benchmark import machine
from nemo_codert.cli.main import main
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit


def test_versions_and_machine_are_printed_and_no_name_of_the_user(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["env"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {name.strip(): text.strip() for name, text in lines.items()}
    assert found["nemo_codert"] == nemo_codert.__version__
    assert found["torch"][0].isdigit() and found["OMP_NUM_THREADS"] == "3"
    assert f"{os.cpu_count()} cores" in found["processor"] and found["memory"].endswith(" GB")
    assert {*machine.NEEDED, *machine.OPTIONAL} <= found.keys()
    text = "\n".join(found.values())
    assert socket.gethostname() not in text and os.path.expanduser("~") not in text and sys.prefix not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_every_package_of_the_extras_that_users_install_is_listed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        package for name, needed in project["optional-dependencies"].items() if name != "test" for package in needed
    ]
    found = machine.environment()
    assert {"demo", "deploy", "scripts"} <= project["optional-dependencies"].keys()
    assert {re.match(r"[\w-]+", package)[0] for package in extras} | {
        "wandb",
        "tensorboard",
        "huggingface_hub",
    } <= found.keys()


def test_a_package_that_is_absent_and_a_torch_that_is_broken_are_named(monkeypatch):
    broken = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback ...\nImportError: libcudart.so.12")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: broken)
    monkeypatch.setattr(machine, "OPTIONAL", ("no_such_package",))
    found = machine.environment()
    assert found["no_such_package"] == "not installed"
    assert found["cuda of torch"] == "torch cannot be imported: ImportError: libcudart.so.12"


def test_gpus_are_listed(monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout="CUDA 13.0\nA100, 80 GB, A100, 80 GB\n", stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    found = machine.environment()
    assert (found["cuda of torch"], found["gpu"]) == ("CUDA 13.0", "A100, 80 GB, A100, 80 GB")
