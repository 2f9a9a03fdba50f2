"""`codert cache` from a checkout: python scripts/cache_teacher.py --help."""

import sys

from nemo_codert.cli.cache import main

if __name__ == "__main__":
    sys.exit(main())
