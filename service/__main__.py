"""``python -m service``: serve until told to stop."""

import sys

from service.launcher import main

if __name__ == "__main__":
    sys.exit(main())
