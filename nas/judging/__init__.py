"""`nas judge`: a person chooses between two pictures of one caption, and does not see whose they are."""
