"""`codert stream` from a checkout: python scripts/transcribe_streaming.py --help."""

import sys

from nemo_codert.cli.stream import main

if __name__ == "__main__":
    sys.exit(main())
