"""What `skiptrain-agent doctor` looks at, one check a file; the list of them is in agent.doctor."""
