"""`codert curves` from a checkout: python scripts/plot_curves.py --help."""

import sys

from nemo_codert.cli.curves import main

if __name__ == "__main__":
    sys.exit(main())
