"""What a training writes: the run directory, its logs, its environment."""
