"""Optimisers and learning-rate schedules, built from a class and its arguments."""

from sightline.optim.schedules import WarmupCosineLR as WarmupCosineLR
