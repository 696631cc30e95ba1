"""What makes `push_to_hub` and `save_pretrained(push_to_hub=True)` of our classes write our card."""

from __future__ import annotations

import importlib
import os


class Published:
    """Stands before a class of diffusers: what that class would upload as it is goes through `backshan_diffusers.hub`.

    The repository then gets the card of this package, and of a pipeline the code to load it without the package.
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
        # by its name: the Hub stands above the models, and the copy of this file in a repository has no such neighbour
        hub = importlib.import_module("backshan_diffusers.hub")
        return hub.push(
            working_dir, repo_id, token=token, message=commit_message, create_pr=create_pr, subfolder=subfolder
        )
