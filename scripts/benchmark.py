"""`codert benchmark` from a checkout: python scripts/benchmark.py --help."""

import sys

from nemo_codert.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
