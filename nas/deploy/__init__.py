"""What leaves the search: exported folders, graphs of other runtimes, drawing from them, latency."""
