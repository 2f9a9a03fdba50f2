"""The configs that are shipped with the package: `conf/` of a checkout, installed as `nemo_codert/conf`.

Imports the standard library only.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """Return the folder of the shipped configs.

    Returns:
        `nemo_codert/conf` where the package was installed from a wheel, the top-level `conf/` in a checkout.

    Raises:
        FileNotFoundError: neither is there.

    Example:
        >>> (conf_folder() / "base.yaml").is_file()
        True
    """
    places = PACKAGE / "conf", PACKAGE.parent / "conf"
    for folder in places:
        if (folder / "base.yaml").is_file():
            return folder
    looked = " and ".join(map(str, places))
    raise FileNotFoundError(f"The configs of nemo_codert are missing: looked in {looked}. Install the package again")


def shipped_configs() -> dict[str, Path]:
    """Return the shipped YAML files by name, sorted.

    Returns:
        Path of each file under its path in the folder without the suffix: `fsdd`, `strategy/static`.

    Example:
        >>> "strategy/static" in shipped_configs()
        True
    """
    folder = conf_folder()
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
