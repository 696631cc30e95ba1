"""The `backshan` command: its parser, its exit codes and its signals. What it does is in `commands/`.

Torch and diffusers take seconds to import, so they are imported where they are needed: `backshan --help` is instant.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from . import __version__
from .commands.exits import DONE, SOME_FAILED, UNUSABLE, UnusableArgumentError, exit_code
from .commands.export import add_export
from .commands.generate import add_generate
from .commands.messages import NOTHING_WRITTEN, PROGRAM, flush, report, shortened
from .commands.push import add_push

ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Besides Ctrl-C: what `kill` and a terminal that is closed send."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows the program's name; by default what the process was started with.

    Returns:
        The exit code: 0 if all was done, 1 if some of it failed, 2 if the arguments cannot be used, 130 after Ctrl-C,
        143 after SIGTERM, 129 after SIGHUP.
        Like every argparse program it raises `SystemExit` after `--help`, `--version` and unparsable arguments.
    """
    options = build_parser().parse_args(arguments)
    try:
        with _signals_interrupt():
            return options.run(options)
    except UnusableArgumentError as error:
        report(shortened(str(error)))
        return UNUSABLE
    except KeyboardInterrupt as interruption:
        report(NOTHING_WRITTEN)
        return exit_code(interruption)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Other signals that end a process do what Ctrl-C does, so that no unfinished file is left."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    is_main = threading.current_thread() is threading.main_thread()  # Python lets no other thread do this
    ours = [number for number in ENDING_SIGNALS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        """The parent's; but what a subcommand does not know is refused by its own parser, which names its own help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str):
        """One sentence in place of argparse's usage block."""
        report(shortened(f"{message.rstrip('.')}: see {self.prog} --help."))
        sys.exit(UNUSABLE)

    def _print_message(self, message: str, file: TextIO | None = None):
        """The parent's, which would take a stream that cannot be written for one that was."""
        if message and file is not None:
            try:
                file.write(message)
            except OSError:
                sys.exit(SOME_FAILED)

    def exit(self, status: int = DONE, message: str | None = None):
        """After `--help` and `--version`: fails where they could not be written, as when the disk is full."""
        super().exit(status if flush(sys.stdout) else SOME_FAILED, message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand sets `run`, a function of the parsed options."""
    parser = _Parser(prog=PROGRAM, description="Front views of clothed people from back views.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    add_generate(commands)
    add_export(commands)
    add_push(commands)
    return parser
