"""The verbs of the command line by what they are about. Heavy libraries are imported inside, so that `--help` stays fast."""
