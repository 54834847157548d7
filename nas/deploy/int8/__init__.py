"""An export in 8-bit integers: which networks how, by whose quantiser, and what it costs."""
