"""Exported models: writing, validating and loading them, prediction with `Predictor`, and evaluation on a split."""
