"""The package as a wheel, installed into an empty folder, for all tests of this folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "nemo_codert", "conf")


class Installed:
    """A folder with the installed package, and a working folder outside the checkout."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.site, self.folder = site, folder

    def run(self, *command: str | Path, fails: int = 0) -> subprocess.CompletedProcess:
        """Run a Python command with the folder as the only one on the path beside Python's own."""
        environment = {**os.environ, "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == fails, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
        return done

    def codert(self, *arguments: str | Path, **settings: int) -> subprocess.CompletedProcess:
        """Run the installed command."""
        return self.run(self.site / "bin" / "codert", *arguments, **settings)


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Installed:
    """The wheel of this checkout, installed without dependencies."""
    source, wheels, site, work = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site", "work"))
    for name in BUILT_FROM:  # a build leaves folders beside its source
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.glob("nemo_codert-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return Installed(site, work)
