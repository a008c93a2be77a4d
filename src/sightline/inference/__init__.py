"""The exported model: the artifact and its validation, `Predictor`, and evaluation on a split."""
