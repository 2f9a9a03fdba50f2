"""`codert latency` from a checkout: python scripts/measure_latency.py --help."""

import sys

from nemo_codert.cli.latency import main

if __name__ == "__main__":
    sys.exit(main())
