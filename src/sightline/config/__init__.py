"""The configuration: its schema, the ranges of its values, and the short forms of its keys."""
