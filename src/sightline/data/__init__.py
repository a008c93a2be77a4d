"""From a path to batches: sources -> packed -> loader, with one preprocessing for training, evaluation and
prediction."""
