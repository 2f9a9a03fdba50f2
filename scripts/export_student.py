"""`codert export` from a checkout: python scripts/export_student.py --help."""

import sys

from nemo_codert.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
