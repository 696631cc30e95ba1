"""`backshan` and `python -m backshan_diffusers`: the command, with an end in words from the first import on."""

import sys


def main() -> int:
    """Run the command and return its exit code, after Ctrl-C too."""
    try:
        from .cli import main as run  # here, because Ctrl-C may come before it is imported

        return run()
    except KeyboardInterrupt as interruption:
        from .commands.exits import exit_code
        from .commands.messages import NOTHING_WRITTEN, report

        report(NOTHING_WRITTEN)
        return exit_code(interruption)


if __name__ == "__main__":
    sys.exit(main())
