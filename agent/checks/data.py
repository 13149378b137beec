"""Whether the training data can be used, as far as names, headers and labels tell."""

from __future__ import annotations

from agent.checks.check import Bench, Finding, ok, skipped
from agent.device import worker_config
from agent.learning.probe import probe


def check(bench: Bench) -> Finding:
    """Look at the data as the agent does at its start; DataError, ConfigError."""
    if bench.config.is_relay:
        return skipped("a relay has no data")
    probe(worker_config(bench.config))
    data = bench.config.data
    test = f"; test set: {data.test_source} {data.test_path}".rstrip() if data.test_source else "; no test set"
    return ok(f"{data.source} {data.path}".rstrip() + test)
