"""Loaders: batches on the device from a packed dataset, or from a loader of another library."""
