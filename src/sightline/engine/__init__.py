"""The loop, what a step means, what watches it, and what a checkpoint holds."""
