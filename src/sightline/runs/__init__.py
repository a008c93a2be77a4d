"""The run directory and what training writes into it: logs, image manifest, environment and heartbeat."""
