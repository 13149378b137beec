"""Board profiles, one YAML file a board: what it measures its energy with, what it draws, how much it may take."""
