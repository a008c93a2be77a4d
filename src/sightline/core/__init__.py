"""Shared building blocks: errors, files, random numbers, dotted names, and the core types of the engine."""
