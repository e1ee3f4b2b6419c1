"""Flags: what the fields of a config are called, which were given, and how they are read."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from itgan.errors import InputError
from itgan.terminal import show

T = TypeVar("T")


def fields(kind: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a type
    """Flag and annotation of every field of a config and of those in it."""
    for name, field in kind.model_fields.items():
        flag = f"{prefix}{name.replace('_', '-')}"
        if hasattr(field.annotation, "model_fields"):
            yield from fields(field.annotation, f"{flag}.")
        else:
            yield flag, field.annotation


def spell_none(kind: Any, arguments: Sequence[str]) -> list[str]:  # noqa: ANN401 - a type
    """`None` in any case, where a number may be left out; elsewhere none is a word."""
    numbers = {flag for flag, type_ in fields(kind) if {type(None), int} <= _leaves(type_)}
    spelled = []
    for before, text in zip(["", *arguments], arguments, strict=False):
        flag, _, value = text.partition("=")
        if _flag(before) in numbers and text.lower() == "none":
            text = "None"
        elif _flag(flag) in numbers and value.lower() == "none":
            text = f"{flag}=None"
        spelled.append(text)
    return spelled


def _leaves(type_: Any) -> set[Any]:  # noqa: ANN401 - a type
    """The types that an annotation is made of."""
    return {type_}.union(*map(_leaves, get_args(type_)))


def _flag(text: str) -> str:
    return text.replace("_", "-")


def given(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag is among the arguments."""
    return any(_flag(text.partition("=")[0]) == flag for text in arguments)


def networks(config: Any, prefix: str = "--") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Flag and value of every network that a config names."""
    for name, value in config:
        if hasattr(type(value), "model_fields"):
            yield from networks(value, f"{prefix}{_flag(name)}.")
        elif name == "network":
            yield f"{prefix}{name}", value


def parse(kind: type[T], arguments: Sequence[str], prog: str, default: T) -> T:
    """Typed flags by tyro, whose multi-line errors become one line.

    Raises:
        InputError: an unknown flag or a value out of bounds.
    """
    import tyro

    said = io.StringIO()
    width = os.environ.get("COLUMNS")
    wants_help = {"-h", "--help"} & set(arguments)
    try:
        # No line breaks inside a message; and help needs some width to be laid out in.
        terminal = shutil.get_terminal_size().columns
        os.environ["COLUMNS"] = str(max(60, terminal)) if wants_help else "2000"
        with contextlib.redirect_stderr(said):
            args = spell_none(kind, arguments)
            return tyro.cli(kind, args=args, prog=prog, description="", default=default)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise InputError(_one_line(said.getvalue())) from None
    finally:
        if width is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = width


def _one_line(box: str) -> str:
    """The message inside tyro's box, which is drawn in ASCII where the terminal is."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{4,}", " ", box).split())
    text = re.sub(r" ?For full helptext.*$| ?For further information visit \S+", "", text)
    found = re.search(
        r"Error parsing (?P<where>\S+): \d+ validation errors? for \S+ (?P<what>.*?) "
        r"\[type=(?P<type>\w+), input_value=(?P<got>.*?), input_type=",
        text,
    )
    if found is None:
        text, _, similar = text.partition(" Perhaps you meant: ")
        titles = r"^(Unrecognized options|Invalid choice|Missing argument|(Value|Parsing) error) "
        text = re.sub(titles, "", text)
        text = re.sub(
            r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$",
            r"\1: give a whole number, not \2",
            text,
        )
        text = re.sub(
            r"^Error parsing (\S+): could not convert string to float: (.*)$",
            r"\1: give a number, not \2",
            text,
        )
        text = re.sub(
            r"^Error parsing (\S+): no type matching INT\|\{(\w+)\} .*? from \['(.*?)'\].*$",
            r"\1: give a whole number or \2, not \3",
            text,
        )
        text = text.split(" Argument helptext:")[0].split(" Got errors:")[0]
        flags = list(dict.fromkeys(re.findall(r"--[a-z][\w.-]+", similar)))[:3]
        return f"{text}; perhaps {' or '.join(flags)}" if flags else text
    what, where = re.sub(r"\.constrained-int\b", "", found["what"], count=1), found["where"]
    prefix = "" if where[0].isupper() else f"{where}."
    if found["type"] == "value_error":
        field, _, message = what.rpartition("Value error, ")
        return f"{prefix}{field.strip()}: {message}" if field else message
    field, _, message = what.partition(" ")
    return f"{prefix}{field}: {message[:1].lower()}{message[1:]}, not {found['got']}"


def preset(
    presets: Mapping[str, Callable[[], T]],
    arguments: Sequence[str],
    command: str,
    what: str,
) -> T:
    """The config of `itgan COMMAND NAME --flags`, NAME being one of some presets.

    Raises:
        InputError: no such name, or wrong flags.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"usage: itgan {command} {what.upper()} [--flags]", ""]
        for name, make in presets.items():
            lines.append(
                f"  {name:<{max(map(len, presets))}}  {(make.__doc__ or '').splitlines()[0]}"
            )
        lines += ["", f"itgan {command} {what.upper()} --help lists the flags."]
        if not arguments:
            raise InputError(f"{command}: name a {what}: {', '.join(presets)}")
        show("\n".join(lines))
        raise SystemExit(0)
    name = arguments[0]
    if name not in presets:
        raise InputError(f"{what} {name!r}: choose one of {', '.join(presets)}")
    default = presets[name]()
    return parse(type(default), arguments[1:], f"itgan {command} {name}", default)
