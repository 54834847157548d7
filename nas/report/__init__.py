"""All ways to look at a run: pages, figures, the terminal, a dashboard, Weights & Biases."""
