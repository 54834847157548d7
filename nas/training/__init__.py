"""One loop for any objective, and the data that goes into it."""
