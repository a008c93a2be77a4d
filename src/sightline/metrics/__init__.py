"""Metrics over the batches of an epoch, and whether higher or lower values of a metric are better."""
