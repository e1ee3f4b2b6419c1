"""What can go wrong for a reason that the user can mend."""

import errno

# No space is left, a quota is used up, or a file would exceed the size that is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """The input is wrong: one line that names the field or file and says what to do.

    The command line prints the message without a traceback and exits with 2.
    """

    def __init__(self, message: str) -> None:
        """What it quotes may hold line breaks: they become spaces."""
        super().__init__(" ".join(message.splitlines()))


def require_utf8(name: str, what: str) -> None:
    """Refuse a name that UTF-8 cannot hold, as of a file that was named in another encoding.

    Raises:
        InputError: it is one; Python gives its bytes in surrogates.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} {name!r} is not UTF-8; give another name") from error
