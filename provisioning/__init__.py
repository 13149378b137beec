"""What an operator runs: from one inventory to the configuration of every device."""
