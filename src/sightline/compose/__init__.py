"""Builds training runs from configs: the parts, the session that trains them, and the run's files.

This is the only package that depends on all packages below it."""
