"""Rank correlation and contrasts over repeats, with their intervals. Knows nothing of runs."""
