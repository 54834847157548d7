"""A run on disk and in a database, written and read in one place."""
