"""Weights & Biases: trials logged as they end, runs uploaded with a workspace and a report."""
