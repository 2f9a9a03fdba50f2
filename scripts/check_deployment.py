"""`codert verify` from a checkout: python scripts/check_deployment.py --help."""

import sys

from nemo_codert.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
