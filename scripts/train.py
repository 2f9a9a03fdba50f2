"""Train a teacher and its student together, or either of them alone: nemo_codert/cli/train.py, `--help` for more."""

import sys

from nemo_codert.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
