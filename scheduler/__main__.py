"""`python -m scheduler serve | token | db`."""

from __future__ import annotations

import sys

from scheduler.serve.command_line import main

if __name__ == "__main__":
    sys.exit(main())
