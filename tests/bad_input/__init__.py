"""What the programs say to mistakes and to hostile surroundings: cases as data, run for real, and docs/errors.md."""
