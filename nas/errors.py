"""The one exception a person is meant to read."""


class InputError(Exception):
    """Bad input: one line that names the file, the key, the value and what was expected. The CLI prints it and exits with 2."""
