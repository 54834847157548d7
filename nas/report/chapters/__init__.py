"""What only some runs have to tell, each as a chapter of the page."""
