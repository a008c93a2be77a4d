"""Data loading, from a path to batches: sources -> packed dataset -> loader. Training, evaluation and prediction share
one preprocessing."""
