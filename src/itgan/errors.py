"""What can go wrong for a reason that the user can mend."""


class InputError(ValueError):
    """The input is wrong: one line that names the field or file and says what to do.

    The command line prints the message without a traceback and exits with 2.
    """
