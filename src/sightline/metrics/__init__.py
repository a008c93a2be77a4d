"""What is measured over the batches of an epoch, and which values of a metric are better."""
