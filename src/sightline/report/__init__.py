"""Reports on runs: lists, comparisons, reproduction certificates, contact sheets and learning-rate plots."""
