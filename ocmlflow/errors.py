"""The error for wrong input: its message names the thing, what was found and what to do."""


class InputError(ValueError):
    """Input that cannot give a correct result; commands show its message without a traceback."""
