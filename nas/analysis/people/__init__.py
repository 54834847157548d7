"""What people answer who are shown two pictures, and what it is worth."""
