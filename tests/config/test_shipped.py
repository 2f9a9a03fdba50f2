"""The shipped configs: found beside the package or inside it, under the names that the command line takes."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nemo_codert.config import shipped

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_checkout_has_its_configs_beside_the_package():
    configs = shipped.shipped_configs()
    assert shipped.conf_folder() == REPOSITORY / "conf"
    assert {"base", "fsdd", "quickstart", "strategy/static", "inference/buffered_rnnt"} <= configs.keys()
    assert sorted(configs.values()) == sorted((REPOSITORY / "conf").rglob("*.yaml"))


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    package = tmp_path / "site" / "nemo_codert"
    shutil.copytree(REPOSITORY / "conf", package / "conf")
    monkeypatch.setattr(shipped, "PACKAGE", package)
    assert shipped.conf_folder() == package / "conf"
    assert "strategy/static" in shipped.shipped_configs()


def test_without_configs_the_message_has_both_places(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "nemo_codert")
    with pytest.raises(FileNotFoundError, match="missing: looked in .*/nemo_codert/conf and .*/conf. Install"):
        shipped.conf_folder()


def test_finding_them_imports_nothing_heavy():
    heavy = "{'torch', 'nemo', 'omegaconf', 'hydra', 'numpy', 'yaml'}"
    code = "import sys; from nemo_codert.config.shipped import shipped_configs; shipped_configs()"
    code += f"; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_command_is_installed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"codert": "nemo_codert.cli.main:main"}
