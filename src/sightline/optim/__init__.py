"""Optimisers and learning-rate schedules, by name."""

from sightline.optim.optimizers import build_optimizer
from sightline.optim.schedules import PER_STEP, WarmupCosineLR, build_schedule

__all__ = ["PER_STEP", "WarmupCosineLR", "build_optimizer", "build_schedule"]
