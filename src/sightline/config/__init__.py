"""The configuration: its schema, the YAML reader, the presets, and the composition root."""
