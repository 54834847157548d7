"""What a network costs: closed forms of single layers, tracing, limits, and tables of latency. Knows no family of networks."""
