"""The cache: every image decoded once, kept on disk, opened as a memory map."""
