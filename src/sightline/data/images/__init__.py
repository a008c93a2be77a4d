"""Decoding, preprocessing and statistics of single images."""
