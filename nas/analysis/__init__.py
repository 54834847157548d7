"""Frames and numbers of finished runs: fronts, effects, certainty, agreement. Draws nothing."""
