"""The YAML files that come with the package."""

from pathlib import Path

import nemo_codert


def conf_folder() -> Path:
    """Return the folder of the shipped YAML files: `conf/` of the checkout."""
    return Path(nemo_codert.__file__).resolve().parents[1] / "conf"
