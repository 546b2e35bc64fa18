"""``python -m flowfabric`` is the ``flowfabric`` command."""

from __future__ import annotations

import sys

from flowfabric.cli import main

if __name__ == "__main__":
    sys.exit(main())
