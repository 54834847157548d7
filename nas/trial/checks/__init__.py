"""What can be known to be wrong with a study before it starts."""
