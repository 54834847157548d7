"""Where the time of trials goes, and how much of it a study will take."""
