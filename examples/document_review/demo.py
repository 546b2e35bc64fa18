"""Runs the example: ``python examples/document_review/demo.py``. See the README beside it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from examples.document_review.orchestrator import main

    sys.exit(main())
