"""What a command says: one sentence a line, on streams that may be closed, full, or of few characters."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PROGRAM = "backshan"

NOTHING_WRITTEN = "interrupted before anything was written."

LONGEST_REFUSAL = 600
"""Characters of a refusal; longer ones lose their middle, where an argument is repeated."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What would break a line or move the cursor, and the bytes of names that are no text."""


def report(sentence: str) -> None:
    """One sentence on stderr; if nobody can read it there, the exit code has to do."""
    say(f"{PROGRAM}: {sentence}", sys.stderr)


def say(line: str, stream: TextIO | None) -> bool:
    """One line, above a progress bar if there is one, in the characters that the stream has.

    Returns:
        Whether it was written: the stream may be closed, or full.
    """
    if stream is None:  # what Python has for a stream that was closed when the process began
        return False
    line = on_one_line(line)
    encoding = stream.encoding or "utf-8"
    tqdm = sys.modules.get("tqdm")
    try:
        (tqdm.tqdm.write if tqdm else print)(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    except OSError:
        _throw_away(stream)
        return False
    return flush(stream)


def on_one_line(text: str) -> str:
    """The text with escape sequences in place of what would break a line."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def flush(stream: TextIO | None) -> bool:
    """Whether all that was written to the stream arrived."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        _throw_away(stream)
        return False
    return stream is not None


def _throw_away(stream: TextIO) -> None:
    """Whatever else is in a broken stream: Python would try to write it at the end, and complain."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def shortened(refusal: str) -> str:
    """Without the middle of what is too long to be read."""
    half = LONGEST_REFUSAL // 2
    return refusal if len(refusal) <= LONGEST_REFUSAL else f"{refusal[:half]} ... {refusal[-half:]}"


def first_sentence(error: BaseException) -> str:
    """The first line of its message, or its name if it has none, as the end of a sentence."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read ({error.strerror})."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."


def as_utf8(text: str) -> str:
    """What every encoding can write: names of files may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the progress bars and warnings of diffusers and transformers: what matters here is said by us."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with quiet_hub():
            yield
    finally:
        for library, (level, with_bar) in zip(libraries, before):
            library.set_verbosity(level)
            if with_bar:
                library.enable_progress_bar()


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the warnings of huggingface_hub; its progress bars show how long a download or an upload takes.

    It leaves those of what failed open: they would be drawn again below whatever is said later.
    """
    import huggingface_hub.utils.logging
    from tqdm import tqdm

    before, open_before = huggingface_hub.utils.logging.get_verbosity(), set(tqdm._instances)
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        huggingface_hub.utils.logging.set_verbosity(before)
        for bar in set(tqdm._instances) - open_before:
            bar.close()
