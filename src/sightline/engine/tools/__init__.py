"""Short trainings that leave no trace: the learning-rate finder and the timing of settings."""
