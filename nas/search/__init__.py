"""What to try next, when to stop and what to repeat: numpy and Optuna alone. Trains nothing and draws nothing."""
