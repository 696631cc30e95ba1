"""Which names may be those of repositories of the Hub, told without asking it."""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def may_be_repo_id(name: str) -> bool:
    """Whether a repository may be called so: `owner/name`, in letters, digits, `-`, `_` and `.`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
