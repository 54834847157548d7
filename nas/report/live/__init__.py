"""A run while it runs: in a terminal, in a notebook, in a dashboard."""
