"""`backshan push`: a model on the Hub."""

from __future__ import annotations

import argparse
import sys

from .exits import DONE, SOME_FAILED, UnusableArgumentError
from .messages import quiet_hub, report, say, shortened


def add_push(commands) -> None:
    """Add the subcommand to the `commands` of a parser."""
    parser = commands.add_parser(
        "push",
        allow_abbrev=False,
        help="put a model on the Hub",
        description="Puts a pipeline or a ControlNet on the Hub, with a card: one commit, or none if nothing has "
        "changed. Nothing else that lies in the folder is sent. Interrupted, the same command goes on.",
        epilog="exit codes: 0 done, 1 the Hub does not answer, 2 it refuses or unusable arguments, 130 interrupted",
    )
    parser.set_defaults(run=push)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="of a saved pipeline or ControlNet")
    add("repo", metavar="REPO", help="Hub repo id, as owner/name; it is made if there is none")
    add("--private", action="store_true", help="only its owner sees the repository")
    add("--revision", metavar="BRANCH", help="it is made if there is none (default: main)")
    add("--license", metavar="ID", help="of the weights, as the Hub names it (default: what their record tells)")


def push(options: argparse.Namespace) -> int:
    """`backshan push`: the Hub is asked when the folder is found to hold a whole model."""
    from .. import hub

    settings = {"private": options.private, "revision": options.revision, "license": options.license}
    with quiet_hub():
        try:
            commit = hub.push(options.folder, options.repo, **settings)
        except hub.UnreachableHubError as error:
            report(shortened(str(error)))
            return SOME_FAILED
        except (OSError, ValueError) as error:
            raise UnusableArgumentError(str(error)) from error
    say(f"{options.repo} holds {options.folder}: {commit.commit_url}", sys.stdout)
    return DONE
