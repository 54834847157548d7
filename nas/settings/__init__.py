"""The study file: its sections, its design, and what they cannot mean."""
