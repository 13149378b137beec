"""Hostile bytes: 100,000 payloads in the ordinary tests, and `python -m tests.fuzz` for as many as you like."""
