"""Augmentations of uint8 batches, each a pure function of (batch, seed, epoch, sample index)."""
