"""The command line: `itgan COMMAND …`.

Heavy imports wait until a command needs them. Exit codes: 0 done, 2 the input is wrong (one line
on stderr), 1 the machine failed, 130 interrupted, 143 stopped.
"""

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from itgan import file_commands, run_commands
from itgan.endings import Interruption, explain
from itgan.errors import InputError, require_utf8
from itgan.terminal import show

COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "plan": run_commands.plan,
    "run": run_commands.run,
    "reproduce": run_commands.reproduce,
    "pretrain": run_commands.pretrain,
    "measure": run_commands.measure,
    "embed": run_commands.stage("embed", "Train the extractor of a recipe."),
    "invert": run_commands.stage("invert", "Make the inverted banks of a recipe."),
    "condense": run_commands.stage("condense", "Make the condensed banks of a recipe."),
    "evaluate": run_commands.stage("evaluate", "Train and score the classifiers of a recipe."),
    "report": run_commands.report,
    "merge": file_commands.merge,
    "generate": file_commands.generate,
    "score": file_commands.score,
    "ledger": file_commands.ledger,
    "import-official": file_commands.import_official,
    "export-official": file_commands.export_official,
    "inspect": file_commands.inspect,
    "zoo": file_commands.zoo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # PyTorch's compiler would paste the value of --only, unquoted, into its code
        del sys.argv[1:]
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in files may be beyond the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    with Interruption(arguments) as interruption:
        try:
            _dispatch(arguments)
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # nobody reads on, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except BaseException as error:
            # An interrupted import may end in any other error.
            if interruption.received or isinstance(error, KeyboardInterrupt):
                ending = interruption.code, interruption.line
            elif (explained := explain(error, *arguments[:1])) is not None:
                ending = explained
            else:
                raise
        return _fail(*ending)  # here, where progress bars are closed already


def _nowhere() -> TextIO:
    """In the place of a closed output, whose number no other file is to get."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _dispatch(arguments: Sequence[str]) -> None:
    for argument in arguments:
        require_utf8(argument, "argument")
    if not arguments or arguments[0] in ("-h", "--help"):
        show(_overview())
    elif arguments[0] == "--version":
        from itgan import __version__

        show(f"itgan {__version__}")
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        raise InputError(f"command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")


def _fail(code: int, line: str) -> int:
    sys.stderr.write(f"itgan: {' '.join(line.splitlines())}\n")
    return code


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: itgan COMMAND …    (itgan COMMAND --help tells more)",
        "",
        "Turn a pre-trained class-conditional generator into a generator of informative",
        "training data.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
