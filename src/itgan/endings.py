"""How a command ends when it does not end well: an exit code and one line.

2 the input is wrong, 1 the machine failed, 130 interrupted (Ctrl-C), 143 stopped (SIGTERM).
"""

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

from itgan.errors import DISK_FULL, InputError

STAGES = ("run", "reproduce", "embed", "invert", "condense", "evaluate")
# What libraries say instead of raising MemoryError.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
# oneDNN's whole message when it gets no memory; a longer one would tell of something else.
ONEDNN = ("could not create a primitive", "could not execute a primitive")


class Interruption:
    """Within this block the first SIGINT or SIGTERM raises KeyboardInterrupt.

    One that comes again, while what is open is being closed, ends the process at once: files are
    written whole or not at all, so there is nothing to lose. An ignored signal stays ignored.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """``arguments`` are those of the command that is to be run again."""
        self.received: int = 0
        self._arguments = arguments
        self._said = False
        self._before: dict[int, Any] = {}
        self._hook: Callable[[Any], object] = sys.unraisablehook

    @property
    def code(self) -> int:
        """The exit code; a KeyboardInterrupt without a signal counts as Ctrl-C."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def line(self) -> str:
        """What has happened and how to go on."""
        what = "stopped" if self.received == signal.SIGTERM else "interrupted"
        return f"{what}; to go on: itgan {' '.join(map(_quoted, self._arguments))}"

    def __enter__(self) -> "Interruption":
        """Take the signals over, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give them back; but not when one has come."""
        if self.received:  # the process is about to end: from here on a signal only hurries it
            self._said = True
            return
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self._end()
        self.received = number
        raise KeyboardInterrupt

    def _lost(self, unraisable: Any) -> None:  # noqa: ANN401 - has no public type
        """Python drops what is raised in a finaliser: then the process ends here."""
        if self.received and isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._end()
        self._hook(unraisable)

    def _end(self) -> None:
        if not self._said:
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
            with contextlib.suppress(OSError):
                os.write(2, os.fsencode(f"{cursor}itgan: {self.line}\n"))
        os._exit(self.code)


def _quoted(argument: str) -> str:
    """As a shell takes it, on one line."""
    if argument.isprintable():
        return shlex.quote(argument)
    plain = (c if c.isprintable() and c not in "\\'" else "" for c in argument)
    escaped = ("".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in argument)
    return "$'" + "".join(p or e for p, e in zip(plain, escaped, strict=True)) + "'"


def explain(error: BaseException, command: str = "") -> tuple[int, str] | None:
    """Exit code and line of what went wrong; None for a defect, which keeps its traceback."""
    causes = list(_causes(error))
    kept = {
        "pretrain": "the last checkpoint is kept",
        **dict.fromkeys(STAGES, "finished cells and the last snapshot are kept"),
    }.get(command, "nothing half-written is left")
    if any(map(_is_memory, causes)):
        remedy = {
            "pretrain": "lower --batch-size",
            **dict.fromkeys(STAGES, "lower --condensation.micro-batch or a batch size"),
        }.get(command, "free some and run again")
        return 1, f"out of memory; {kept}; {remedy}"
    if any(isinstance(cause, OSError) and cause.errno in DISK_FULL for cause in causes):
        return 1, f"the disk is full; {kept}; free space and run again"
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.EIO:
        return 2, f"{error.filename}: {error.strerror}; give another path"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, (RuntimeError, ImportError)):
        return isinstance(error, MemoryError)
    text = str(error).lower()
    return text in ONEDNN or any(told in text for told in OUT_OF_MEMORY)
