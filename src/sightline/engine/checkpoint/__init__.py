"""Checkpoints: the file format, when files are written, and how a training is restored."""
