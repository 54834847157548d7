"""One architecture trained and scored, and what it starts from."""
