"""What the fields of a config are called as flags, and which of them were given."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args


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
