"""How the training samples are dealt out to the nodes: one function a kind, each sample to one node at most."""
