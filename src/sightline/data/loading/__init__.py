"""From a cached split to batches on the device."""
