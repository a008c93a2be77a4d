"""Data sources: each module lists the labelled images of one layout (folders, CSV, Parquet, IDX, Python objects, …)."""
