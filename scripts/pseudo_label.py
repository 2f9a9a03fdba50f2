"""`codert pseudo-label` from a checkout: python scripts/pseudo_label.py --help."""

import sys

from nemo_codert.cli.pseudo_label import main

if __name__ == "__main__":
    sys.exit(main())
