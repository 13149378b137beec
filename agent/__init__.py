"""The agent that runs on every device; importing it imports nothing else."""

__version__ = "0.1.0"
