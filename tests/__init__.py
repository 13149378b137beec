"""The tests of all packages; a package of its own, as a dependency installs a stray top-level `tests` too."""
