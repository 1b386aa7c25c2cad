"""Errors that the user can correct, and how an error is shown in one line."""


class VidpipeError(Exception):
    """An error that the user can correct. Tools print its message in one line and end with `exit_code`."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """Returns an error's message without what TensorFlow puts below its first line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
