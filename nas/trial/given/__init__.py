"""Networks that a search is given before its own: what it tries first, and what is known already."""
