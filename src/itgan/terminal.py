"""What commands print on the standard output."""

import sys
from collections.abc import Sequence
from typing import Any


def show(text: str) -> None:
    """Print text, with one line break at its end."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def show_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: the first column to the left, numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for i, title in enumerate(head):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # brackets are no markup
    Console(width=None if sys.stdout.isatty() else 110).print(table)
