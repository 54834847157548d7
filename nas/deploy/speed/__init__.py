"""How long networks take on this machine, whole and block by block."""
