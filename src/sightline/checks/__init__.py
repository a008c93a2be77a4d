"""Checks of a dataset before training. Each problem is reported as a `Finding` with its place and a fix."""
