"""Which architectures there are and what they cost on paper: search spaces, published architectures, screening."""
