"""Train several strategies alike and compare their students: nemo_codert/cli/compare.py, `--help` for more."""

import sys

from nemo_codert.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
