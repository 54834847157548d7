"""What people write: YAML and numbers, read once, strictly, with the line of every key. Imports the ground alone."""
