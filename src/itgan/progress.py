"""Progress with the time that is left: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterable, Iterator

LINE_SECONDS = 10.0


def _plain(steps: Iterable[int], label: str, total: int, done: int) -> Iterator[int]:
    begun = last = time.monotonic()
    for count, step in enumerate(steps, start=1):
        yield step
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            left = (now - begun) / count * (total - done - count)
            sys.stderr.write(f"{label}: {done + count}/{total}, {left:.0f} s left\n")
            sys.stderr.flush()


def _bar(steps: Iterable[int], label: str, total: int, done: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        for step in steps:
            yield step
            progress.advance(task)


def track(steps: range, label: str) -> Iterator[int]:
    """Yield the steps; those before ``steps.start`` count as done already.

    A terminal shows a bar with the time left. Elsewhere a line appears every ten seconds, so
    short loops stay silent.
    """
    show = _bar if sys.stderr.isatty() else _plain
    return show(steps, label, steps.stop, steps.start)


def say(line: str) -> None:
    """One line about what happens now, on stderr (stdout is for results)."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
