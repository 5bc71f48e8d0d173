"""The one exception the command line turns into a line of advice instead of a stack trace."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what was given, what was expected, what to do."""
