"""List the configs that are shipped with nemo_codert, or copy one into a folder of your own.

    codert configs ls
    codert configs cp fsdd my_pair/

A copy still inherits from the shipped configs. It is trained with --config-dir:

    codert train --config-dir my_pair --config-name fsdd strategy=static ...
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_codert.cli.console import exit_status
from nemo_codert.config.nearest import nearest
from nemo_codert.config.shipped import shipped_configs
from nemo_codert.files.atomic import whole_file

# Heading and prefix of the name on the command line, by folder.
GROUPS = {
    "": ("Configs, for --config-name", ""),
    "strategy": ("Strategies, for codert train, check and compare", "strategy="),
    "inference": ("Settings of NeMo's streaming pipelines, for codert stream", ""),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{ls,cp}")
    actions.add_parser("ls", help="list the shipped configs with a line about each")
    copy = actions.add_parser("cp", help="copy a config into a folder, which is made where it is missing")
    copy.add_argument("name", metavar="NAME", help="as codert configs ls lists it: fsdd")
    copy.add_argument("output", metavar="FOLDER", type=Path, help="folder, or the name of the copy: my_pair/pair.yaml")
    return parser.parse_args(arguments)


def header_line(path: Path) -> str:
    """Return the first line of a YAML file's header comment, without a clause that continues in the next line."""
    comments = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))[0].splitlines()
    line = next((line.lstrip("# ") for line in comments if "@package" not in line), "")
    return line if line.endswith(".") else re.sub(r"(?<=\w)[.:;]( .*|$)", "", line)


def listing() -> str:
    """Return the names of the shipped configs by kind, each with `header_line`."""
    configs = shipped_configs()
    lines: list[str] = []
    for group, (heading, prefix) in GROUPS.items():
        names = [name for name in configs if name.rpartition("/")[0] == group]
        shown = {name: prefix + name.rpartition("/")[2] if prefix else name for name in names}
        width = max(map(len, shown.values()))
        lines += [f"{heading}:", *(f"  {shown[name]:<{width}}  {header_line(configs[name])}" for name in names), ""]
    return "\n".join(lines[:-1])


def copy_config(name: str, output: Path) -> Path:
    """Copy a shipped config.

    Args:
        name: of the config: `fsdd`, `strategy/static`.
        output: a folder, which is made where it is missing, or the path of the copy, ending in .yaml.

    Returns:
        Path of the copy.

    Raises:
        ValueError: no such config, or a file that is there already.
    """
    configs = shipped_configs()
    name = name.removesuffix(".yaml")
    if name not in configs:
        raise ValueError(f"there is no config {name!r}, the nearest is {nearest(name, configs)!r} (codert configs ls)")
    path = output if output.suffix == ".yaml" else output / f"{name}.yaml"
    if path.exists():
        raise ValueError(f"{path} is there already and is not replaced. Give another folder or name")
    with whole_file(path) as temporary:
        temporary.write_bytes(configs[name].read_bytes())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `codert configs`; see the module's docstring."""
    options = parse_arguments(argv)

    def work() -> None:
        if options.action == "ls":
            print(listing())
            return
        path = copy_config(options.name, options.output)
        print(f"Wrote {path}")
        if "/" not in options.name:
            print(f"Use it with: codert train --config-dir {path.parent} --config-name {path.stem} ...")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
