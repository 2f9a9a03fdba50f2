"""`codert analyze` from a checkout: python scripts/analyze_logits.py --help."""

import sys

from nemo_codert.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
