"""How fast things are on this machine: `python -m tests.bench` prints, and judges nothing."""
