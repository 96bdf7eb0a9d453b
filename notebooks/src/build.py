"""Make the notebooks from their sources; see README.md beside this file."""

import sys

from nbbuild import main

if __name__ == "__main__":
    sys.exit(main())
