"""Numbers and texts of the command line, each read or refused by itself."""

from __future__ import annotations

import argparse
import math

LARGEST_NUMBER = 2**63 - 1
"""Of a seed, and of whatever else is counted."""


def positive(text: str) -> int:
    """A number of things."""
    return _whole_number(text, 1)


def seed(text: str) -> int:
    """What torch's generators are seeded with."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    # Python converts no more than some thousand digits
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_NUMBER)) else -1
    if not least <= number <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {LARGEST_NUMBER}")
    return number


def guidance(text: str) -> float:
    """A weight of the prompt."""
    try:
        # Python also reads digits of other scripts, underscores between them, and spaces around them
        value = float(text) if text.isascii() and "_" not in text and text == text.strip() else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def prompt(text: str) -> str:
    """The bytes that were given, read as UTF-8 whatever the locale says."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("the text is not in UTF-8, and no other encoding can be read") from None
