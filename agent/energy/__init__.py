"""Where joules come from: one source of energy a file."""
