"""The option that rewrites the golden transcripts."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rewrite-transcripts`: read the diff before you keep it."""
    parser.addoption(
        "--rewrite-transcripts",
        action="store_true",
        help="write tests/core/transcripts anew",
    )
