"""What MLproject runs: a few lines for each command, which is in ocmlflow.cli."""
