"""`codert env`: versions and machine, for reports of faults. The work is `nemo_codert.benchmark.machine`."""

import sys

from nemo_codert.benchmark.machine import environment
from nemo_codert.cli import console

DESCRIPTION = """
Prints the versions of nemo_codert and of the packages it works with, processor, memory and GPUs: paste the output into
a report of a fault. It has no path and no name of a user or a host.
"""
EXAMPLES = """
codert env > environment.txt
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    console.command_parser(DESCRIPTION, EXAMPLES).parse_args(argv)
    found = environment()
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
