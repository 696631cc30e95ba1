"""How a command ends."""

from __future__ import annotations

import signal

DONE, SOME_FAILED, UNUSABLE, KILLED = 0, 1, 2, 128
"""Exit codes; the number of the signal is added to the last."""


class UnusableArgumentError(ValueError):
    """Nothing can be done with these arguments; the message is one sentence."""


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Of a process that a signal ended: `main` puts its number into the exception; Ctrl-C has none."""
    return KILLED + (interruption.args[0] if interruption.args else signal.SIGINT)
