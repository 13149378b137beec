"""Training done for many nodes at once: engines behind one face, `sequential` being bit-equal to a device's trainer."""
