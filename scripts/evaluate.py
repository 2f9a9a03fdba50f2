"""`codert evaluate` from a checkout: python scripts/evaluate.py --help."""

import sys

from nemo_codert.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
