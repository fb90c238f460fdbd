"""What every command shares: where it prints, how it fails in one line, how it shows that it works."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from unipo_hooks.errors import UnipoError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from unipo_hooks.export import Progress

P = ParamSpec("P")
R = TypeVar("R")

_PIPE_WIDTH = 200
"""Columns where the output is no terminal: lines are for other programs and should not break."""

_TABLE_WIDTH = 100_000
"""Columns of a table where the output is no terminal: more than any line has."""

PATIENCE_S = 1.0
"""Work that takes longer than this shows a progress bar."""


def console(*, stderr: bool = False) -> Console:
    """Where people read. Text of a run is printed as it is, never as markup; a pipe gets whole lines."""
    from rich.console import Console

    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    width = _PIPE_WIDTH if piped else None
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=piped, width=width)


def say(line: str) -> None:
    """One line for the person."""
    console().print(printable(line))


def warn(line: str) -> None:
    """One line the person should not miss, on stderr."""
    console(stderr=True).print(printable(f"note: {line}"), style="yellow")


def show(table: Table) -> None:
    """A table for the person; a pipe gets whole lines without the spaces that fill them up."""
    screen = console()
    if screen.is_terminal:
        screen.print(table)
        return
    screen.width = _TABLE_WIDTH
    with screen.capture() as text:
        screen.print(table)
    for line in text.get().splitlines():
        say(line.rstrip())


def say_json(value: Any) -> None:
    """JSON for a script, on stdout: NaN and infinities are null."""
    typer.echo(json.dumps(value, ensure_ascii=True, indent=1, allow_nan=False))


def printable(text: str) -> str:
    """Text of a run made fit for a terminal: control characters, which could move the cursor, are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_clear_line(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose foreseeable failures are one line on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UnipoError as error:
            message = str(error)
        except BrokenPipeError:  # `| head` has read enough
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}"
        console(stderr=True).print(printable(f"unipo-hooks: {' '.join(message.split())}"), style="red")
        raise typer.Exit(1)

    return wrapped


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A function to tell of the part done and the whole; draws a bar on stderr once it takes longer than a second."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=None)
    started, drawn = time.monotonic(), False

    def report(done: int, total: int) -> None:
        nonlocal drawn
        bar.update(task, completed=done, total=max(total, 1))
        if not drawn and bar.console.is_terminal and time.monotonic() - started > PATIENCE_S:
            bar.start()
            drawn = True

    try:
        yield report
    finally:
        if drawn:
            bar.stop()
