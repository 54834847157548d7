"""Where Optuna keeps a study, in a file or in PostgreSQL, and who may write to it."""
