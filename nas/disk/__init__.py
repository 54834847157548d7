"""Files: those of this program, written whole or not at all, and those of others, read within bounds. Imports the ground
alone."""
