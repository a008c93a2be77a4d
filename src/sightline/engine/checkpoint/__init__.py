"""Checkpoints: the file format, when they are written, and how a training is restored."""
