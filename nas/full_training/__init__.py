"""`nas train`: an architecture at deploy scale."""
