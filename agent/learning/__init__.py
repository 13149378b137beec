"""Models, data and training; torch is imported inside functions only, when the first training slot comes."""
