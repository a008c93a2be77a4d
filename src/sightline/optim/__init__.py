"""Optimisers and learning-rate schedules, by name."""

from sightline.optim.schedules import WarmupCosineLR as WarmupCosineLR
