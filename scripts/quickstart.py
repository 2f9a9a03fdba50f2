"""From nothing to a distilled student in one command: nemo_codert/cli/quickstart.py, `--help` for more."""

import sys

from nemo_codert.cli.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
