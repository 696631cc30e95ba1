"""What an exported model says of where it comes from, and why some models are not exported."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from .. import __version__
from ..model_record import is_embedded

SOFTWARE = "backshan"
"""Written into everything that is exported, so that it may be replaced by a later export."""


class ExportError(ValueError):
    """A model cannot be exported, or not to this place; the message is one sentence that says what to do."""


def origin_of(folder: Path, repo_id: str | None = None) -> dict[str, str]:
    """Name, version and licence of the model in a folder. Folders above it are left out.

    The licence is that of the folder's `README.md`, which is the card of a model on the Hub; without one it is not
    guessed, because weights that began as somebody else's keep that licence.

    Args:
        folder: of the model.
        repo_id: of the repository from which it was downloaded, to a folder that is called like a commit.
    """
    card = folder / "README.md"
    if is_embedded(folder):
        licence = "apache-2.0"
    else:
        licence = ModelCard.load(card).data.get("license") if card.is_file() else None
    return {
        "software": SOFTWARE,
        "version": __version__,
        "model": repo_id or folder.resolve().name,
        "license": str(licence or "not recorded"),
    }
