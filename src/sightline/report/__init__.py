"""What reads finished runs: lists, comparisons, reproduction certificates, plots."""
