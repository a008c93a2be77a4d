"""Short trial trainings that do not change the model: the learning-rate finder and the tuning of speed settings."""
