"""The pure core: it decides and averages, and holds no clock, socket, thread, torch or file."""
