"""What a run leaves: its directory, its logs, its model, its predictions."""
