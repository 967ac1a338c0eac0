"""What a user can mend: its message names the thing, what was found and what would do."""


class InputError(ValueError):
    """Input that cannot give a right result; entry points show its message without a traceback."""
