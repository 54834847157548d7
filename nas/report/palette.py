"""The colours of every figure and page: one for the front, one for the winner, greys for the rest."""

FRONT, KNEE, LIMIT, GREY, PALE = "#1c5fb8", "#e8590c", "#c92a2a", "#868e96", "#b4bbc2"
TEXT, GRID, LINE = "#343a40", "#edf0f2", "#ced4da"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
SERIES = ("#1c5fb8", "#e8590c", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d", "#5f3dc4", "#5c4813")
"""Things beside each other that are alike: studies, components. Told apart in greyscale by order, not by hue alone."""
