"""What can go wrong for a reason that the user can mend."""

import errno

# No space is left, a quota is used up, or a file would exceed the size that is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_text(name: str) -> bool:
    """Whether UTF-8 can hold it: Python gives names of files that are none in surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class InputError(ValueError):
    """The input is wrong: one line that names the field or file and says what to do.

    The command line prints the message without a traceback and exits with 2.
    """

    def __init__(self, message: str) -> None:
        """What it quotes may hold line breaks: they become spaces."""
        super().__init__(" ".join(message.splitlines()))
