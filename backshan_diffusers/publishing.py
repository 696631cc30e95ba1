"""What our classes and the Hub have to do with each other: `push_to_hub` writes our card, a failed loading says why.

The Hub stands above the models, so `backshan_diffusers.hub` is imported by its name when it is needed; the copy of
this file in a repository has no such neighbour.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = "backshan_diffusers"
HUB = f"{PACKAGE}.hub"


@contextmanager
def hub_in_words(
    name: str | os.PathLike,
    revision: str | None,
    folder: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Within, what a repository cannot give is a `HubError` with one sentence, in place of what diffusers says.

    Where this package is not installed, it stays what diffusers says.

    Args:
        name: what is loaded. What lies here is none of the Hub's business.
        revision: of the repository that was asked for.
        folder: to which it was downloaded, if it is checked within.
        given: the arguments with which a pipeline is downloaded within.
    """
    try:
        yield
    except Exception as error:
        if os.path.exists(name) or importlib.util.find_spec(PACKAGE) is None:
            raise
        hub = importlib.import_module(HUB)
        if (refusal := hub.loading_in_words(error, os.fspath(name), revision, folder, given)) is None:
            raise
        raise refusal from error


class Published:
    """Stands before a class of diffusers: what that class would upload as it is goes through `backshan_diffusers.hub`.

    The repository then gets the card of this package, and of a pipeline the code to load it without the package. Where
    the package is not installed, it is uploaded as it is.
    """

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Push it to the Hub, as diffusers does; what fails for a reason that may pass is tried again.

        Args:
            repo_id: `owner/name` of the repository, which is made if there is none; a name alone is one of your own.
            commit_message: of the commit.
            private: whether only its owner sees the repository. One that is public already is refused then.
            token: by default the one of `hf auth login`.
            create_pr: whether to propose the commit in place of making it.
            safe_serialization: anything but true is refused.
            variant: under which the weights are stored, as `fp16`, beside those that are there.
            subfolder: of the repository, for a part of a model; no card is written then.

        Returns:
            The commit, which is the text of its address.

        Raises:
            OSError: as [`~backshan_diffusers.hub.HubError`] if the Hub refuses, or does not answer even after some
                time.
            ValueError: if `safe_serialization=False` is given.
        """
        if not safe_serialization:
            raise ValueError("weights are pushed as safetensors only: leave safe_serialization out.")
        if importlib.util.find_spec(PACKAGE) is None:
            return super().push_to_hub(
                repo_id, commit_message, private, token, create_pr, variant=variant, subfolder=subfolder
            )
        hub = importlib.import_module(HUB)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            return hub.push(
                folder,
                repo_id if "/" in repo_id else hub.make_repo(repo_id, private=private, token=token),
                private=bool(private),
                token=token,
                message=commit_message,
                create_pr=create_pr,
                subfolder=subfolder,
            )

    def _upload_folder(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> str:
        """Called by diffusers where `save_pretrained` is to push as well; returns the commit's address."""
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
