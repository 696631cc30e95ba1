"""What our classes and the Hub have to do with each other: `push_to_hub` writes our card, a failed loading says why.

The Hub stands above the models, so `backshan_diffusers.hub` is imported by its name when it is needed; the copy of
this file in a repository has no such neighbour.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "backshan_diffusers"
HUB = f"{PACKAGE}.hub"


@contextmanager
def hub_in_words(name: str | os.PathLike, revision: str | None, folder: Path | None = None) -> Iterator[None]:
    """Within, what a repository cannot give is a `HubError` with one sentence, in place of what diffusers says.

    Where this package is not installed, it stays what diffusers says.

    Args:
        name: what is loaded. What lies here is none of the Hub's business.
        revision: of the repository that was asked for.
        folder: to which it was downloaded, if it is checked within.
    """
    try:
        yield
    except Exception as error:
        if os.path.exists(name) or importlib.util.find_spec(PACKAGE) is None:
            raise
        hub = importlib.import_module(HUB)
        if (refusal := hub.loading_in_words(error, os.fspath(name), revision, folder)) is None:
            raise
        raise refusal from error


class Published:
    """Stands before a class of diffusers: what that class would upload as it is goes through `backshan_diffusers.hub`.

    The repository then gets the card of this package, and of a pipeline the code to load it without the package. Where
    the package is not installed, it is uploaded as it is.
    """

    def _upload_folder(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> str:
        """Called by diffusers when the object is saved in `working_dir`; returns the commit's address."""
        if importlib.util.find_spec(PACKAGE) is None:
            return super()._upload_folder(
                working_dir,
                repo_id,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
                subfolder=subfolder,
            )
        return importlib.import_module(HUB).push(
            working_dir, repo_id, token=token, message=commit_message, create_pr=create_pr, subfolder=subfolder
        )
