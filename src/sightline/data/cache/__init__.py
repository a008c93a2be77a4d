"""The cache of packed datasets: each image is decoded once, stored on disk and memory-mapped."""
