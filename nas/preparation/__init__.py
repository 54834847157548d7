"""One's own pictures, from a first look to a study that only has to be run."""
