"""`codert prepare` from a checkout: python scripts/prepare_data.py --help."""

import sys

from nemo_codert.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
