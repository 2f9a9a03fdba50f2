"""Package nemo_codert with the top-level conf/ as nemo_codert.conf; pyproject.toml has everything else."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nemo_codert*"]), "nemo_codert.conf"],
    package_dir={"nemo_codert.conf": "conf"},
)
