"""`python -m nemo_codert`: the command `codert`."""

import sys

from nemo_codert.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
