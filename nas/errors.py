"""The one exception a person is meant to read."""


class InputError(Exception):
    """Bad input: one line that names the file, the key, the value and what was expected. The CLI prints it and exits with 2."""


def brief(error: BaseException) -> str:
    """What another library's exception says, on one line of at most 200 characters, to be part of an InputError."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
