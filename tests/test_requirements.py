"""The two lists of what the tests ran with agree."""

import re

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit


def pinned(name: str) -> dict[str, str]:
    """Package -> version of a file with one `package[extra]==version` a line."""
    lines = (line.split("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines())
    pins = (re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line) for line in lines if line)
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins}


def test_the_lock_has_what_is_required_and_torch_is_left_to_the_machine():
    required, locked = pinned("requirements.txt"), pinned("requirements.lock")
    assert len(locked) > 100
    assert required.pop("torch") and "torch" not in locked
    assert {name: locked.get(name) for name in required} == required
