"""Models and pairs to the Hub and back: the only file that talks to it.

What is pushed becomes one commit, so that all of it is visible or nothing. huggingface_hub's `upload_folder` would
split many files over several commits, and a commit that fails into smaller ones.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

import httpx2
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    get_session,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from . import MINI, __version__, cards
from .data import load_pairs
from .data.pairs import SPLITS
from .data.tables import masks_of, write_tables
from .files import full_disk_in_words
from .folder_check import (
    ADAPTERS,
    COMPONENTS_WITH_WEIGHTS,
    INDEX,
    PICKLES,
    check_folder,
    components,
    object_in,
    records_conditioning,
    without_origin,
)
from .model_record import beside
from .remote_code import sources
from .repo_ids import may_be_repo_id

logger = logging.getLogger(__name__)

MODEL_FILE = re.compile(
    r".+\.safetensors(?:\.index(?:\.\w+)?\.json)?"
    r"|(?:(?:generation|preprocessor|processor|scheduler|tokenizer)_)?config\.json"
    r"|(?:added_tokens|special_tokens_map|tokenizer|vocab)\.json|(?:merges|vocab)\.txt"
    r"|(?:sentencepiece\.bpe|spiece|tokenizer)\.model"
)
"""Name of a file of a component; no other one is pushed or pulled: `token.json` may be a key to something."""

CONFIG = "config.json"
CARD = "README.md"

STALLED_AFTER_S = 60.0
"""How long a connection may be silent."""

WAITS_S = (1, 2, 4, 8)
"""Before what failed is tried again."""

OVERTAKEN = 412
"""Status code that says that somebody else has committed in between."""

PASSING = frozenset((408, OVERTAKEN, 429, 500, 502, 503, 504))
"""Status codes after which the same may succeed."""

WITHOUT_ANSWER = (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)
"""What is raised where the Hub does not answer, or another does for it, such as a gateway, with a page."""

WEIGHTS = re.compile(
    r"[\w-]+?(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5}(?:\.(?P<old>\w+))?)?\.(?:safetensors|bin)"
    r"|[\w-]+\.(?:safetensors|bin)\.index(?:\.(?P<of_index>\w+))?\.json"
)
"""Name of a file of weights or of their index, in which `variant` (as `fp16`) may stand in three places."""

TABLE = re.compile(rf"data/(?:{'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")
"""Name of a file of pairs, as [`push_pairs`] writes them."""

OF_HUB = (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError)
"""What is raised where a repository, or a way to it, is missing."""

Content = Path | bytes
Result = TypeVar("Result")


class HubError(OSError):
    """What was asked of the Hub cannot be done; the message is one sentence that says what to do."""


class MissingRepoError(HubError):
    """There is no such repository, or it is not for everybody."""


class MissingRevisionError(HubError):
    """The repository has no such branch, tag or commit."""


class MissingFileError(HubError):
    """The repository lacks a file, or has one that cannot be used."""


class UnreachableHubError(HubError):
    """The Hub does not answer, nothing may be asked of it, or others are always faster."""


@dataclass(frozen=True)
class Model:
    """Where a model lies, and which kind of place that is.

    Args:
        folder: of the pipeline.
        origin: in words.
        is_choice: whether the name could have stood for another place too.
        repo_id: of the repository that it comes from.
    """

    folder: Path
    origin: str
    is_choice: bool
    repo_id: str | None = None


def find_model(name: str) -> Model:
    """What a name stands for: a folder, or else a repository, which is downloaded, or else the embedded `mini`.

    `mini` has no slash, as a repository's id has; a folder of that name wins if it is a pipeline's.

    Raises:
        HubError: if there is nothing of that name, or it cannot be downloaded.
    """
    if name == "mini" and not os.path.isfile(os.path.join(name, INDEX)):
        return Model(Path(MINI), "the embedded mini", True)
    if os.path.isdir(name):
        return Model(Path(name), f"the folder {name}", name == "mini" or may_be_repo_id(name))
    if os.path.isfile(name):
        raise HubError(f"{name} is a file: give the folder of a saved pipeline, a Hub repo id, or mini.")
    if not may_be_repo_id(name):
        raise HubError(
            f"the model folder {name} does not exist: give the folder of a saved pipeline, a Hub repo id, or mini."
        )
    folder = pull(name)
    return Model(folder, f"the Hub repository {name} at {folder.name[:7]}", True, name)


def pull(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download a pipeline into the cache of huggingface_hub, or find it there; an interrupted download goes on.

    Only configs, safetensors and the card are downloaded, and a variant only of what there is in no other form. If the
    Hub cannot be reached, what was downloaded before will do, where that is whole.

    Args:
        repo_id: of the repository.
        revision: branch, tag or commit.
        token: for a private repository; by default the one of `hf auth login`.

    Returns:
        The folder of the pipeline.

    Raises:
        HubError: if there is none, or its weights are only in pickles.
    """
    check_repo_id(repo_id)
    _check_revision(revision)
    api = HfApi(token=token, library_name="backshan_diffusers", library_version=__version__)
    before = _downloaded_before(repo_id, revision)

    def download() -> Path:
        try:
            names = _names_to_pull(api, repo_id, revision)
            patterns = [glob.escape(name) for name in names]
            return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
        except Exception as error:
            if before is not None and _has_cause(error, WITHOUT_ANSWER):
                raise _pull_in_words(error, repo_id, revision) from error  # which is not tried again
            raise

    try:
        return _persistently(download, repo_id, revision, _pull_in_words)
    except UnreachableHubError:
        if before is None:
            raise
        logger.warning("%s cannot be reached: what was downloaded before is used.", repo_id)
        return before


def _downloaded_before(repo_id: str, revision: str | None) -> Path | None:
    """The folder of a pipeline in the cache, if it is whole: one that was interrupted has its index too."""
    index = try_to_load_from_cache(repo_id, INDEX, revision=revision)
    if not isinstance(index, str):
        return None
    try:
        check_folder(Path(index).parent, ())
    except OSError:
        return None
    return Path(index).parent


def _names_to_pull(api: HfApi, repo_id: str, revision: str | None) -> list[str]:
    """The files of a pipeline; but for adapters and card, none lies outside of the folders that its index names."""
    listed = [each.rfilename for each in api.model_info(repo_id, revision=revision).siblings]
    if INDEX not in listed:
        raise MissingFileError(
            f"{repo_id} has no {INDEX}: give a repository with a pipeline, or open its ControlNet with"
            " BackshanControlNetModel.from_pretrained."
        )
    file = hf_hub_download(repo_id, INDEX, revision=revision, token=api.token)
    try:
        index = object_in(Path(file))
    except ValueError as error:
        raise _damaged_index(repo_id, str(error)) from error
    names = [name for name in (INDEX, ADAPTERS, CARD) if name in listed]
    for component in components(index):
        inside = [name for name in listed if re.fullmatch(rf"{re.escape(component)}/[^/\\]+", name)]
        safe = [name for name in inside if MODEL_FILE.fullmatch(PurePosixPath(name).name)]
        if _has(inside, PICKLES) and not _has(inside, {".safetensors"}):
            raise _only_a_pickle(repo_id, component)
        variants = {variant_of(name) for name in safe} - {None}
        # in a variant only where there is nothing else
        wanted = "" if "" in variants else min(variants, default="")
        names += [name for name in safe if variant_of(name) in (None, wanted)]
    return names


def _has(names: list[str], suffixes: frozenset[str] | set[str]) -> bool:
    return any(PurePosixPath(name).suffix in suffixes for name in names)


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    token: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """Push a pipeline or a ControlNet, with its card, and a pipeline with the code to load it without this package.

    Nothing but the model's configs and safetensors leaves the folder, and no config tells where it lay. What has not
    changed is not sent again; if nothing has, there is no commit. If the push is interrupted, what is complete by then
    is not sent again by the next one. Weights of an earlier push that these replace are removed in the same commit.

    Args:
        folder: of the model.
        repo_id: of the repository, which is made if there is none.
        private: whether only its owner sees it.
        revision: a branch, which is made if there is none; by default `main`.
        license: identifier of the weights' licence, as the Hub has them; see [`cards.model_card`].
        token: by default the one of `hf auth login`.
        message: of the commit.
        create_pr: whether to propose the commit in place of making it.
        subfolder: of the repository, for a part of a model; no card is written then.

    Raises:
        OSError: if the folder holds no whole model of this package; as [`HubError`] if the Hub refuses, or does not
            answer even after some time.
        ValueError: if the files of which the card is made cannot be read.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    _check_revision(revision)
    files = _model_files(folder)
    if subfolder is not None:
        if not re.fullmatch(r"\w[\w.-]*(?:/\w[\w.-]*)*", subfolder):
            raise HubError(f"{subfolder!r} is no folder of a repository: give a name, as controlnet.")
        files = {f"{subfolder}/{name}": content for name, content in files.items()}
    else:
        files |= _surroundings(folder, repo_id, license)
    message = message or f"Push {'a pipeline' if INDEX in files else 'a ControlNet'} of backshan_diffusers"
    return _push(repo_id, "model", files, private, revision, token, message, create_pr)


def make_repo(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """The full id of a model's repository of one's own, which is made if there is none.

    Args:
        repo_id: of the repository, without its owner, who is the token's.
        private: whether only its owner sees it; `None` leaves it to the owner's settings.
        token: by default the one of `hf auth login`.

    Raises:
        HubError: if the Hub refuses, or does not answer even after some time.
    """
    check_repo_id(f"owner/{repo_id}")
    api = HfApi(token=token, library_name="backshan_diffusers", library_version=__version__)

    def make() -> str:
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id

    return _persistently(make, repo_id, None, _push_in_words)


def push_finished(folder: Path, repo_id: str, report: Callable[[str], None], *, private: bool) -> None:
    """As [`push`], for a run that must not end because the network does: a failure is one sentence to `report`.

    It waits for the end of the push, at most some minutes if the Hub does not answer. What a failed push has sent is
    not sent again by the next one.

    Args:
        folder: of the finished pipeline.
        repo_id: of the repository, which is made if there is none.
        report: is told what went wrong.
        private: whether only its owner sees the repository.
    """
    with _failure_reported(f"{folder} was not pushed to {repo_id}", report):
        push(folder, repo_id, private=private)


class UnfinishedPushes:
    """Pushes of a model that still learns, to the branch `training`.

    Each is made by a thread while the training goes on: it may take as long as many steps, and some minutes where the
    Hub does not answer. One that is due meanwhile is left out, for the next one sends what the model is by then.
    Whatever goes wrong is one sentence to `report`.

    Args:
        repo_id: of the repository, which is made if there is none.
        folder: where a model lies while it is pushed.
        report: is told what went wrong, or was left out.
        private: whether only its owner sees the repository.
    """

    BRANCH = "training"

    def __init__(self, repo_id: str, folder: Path, report: Callable[[str], None], *, private: bool):
        self.repo_id, self.folder, self.report, self.private = repo_id, folder, report, private
        self._api, self._last = HfApi(), None

    def begin(self, stage: str, step: int, write: Callable[[Path], None]) -> None:
        """Write the model now, by `write(folder)`, and push it while the caller goes on.

        Args:
            stage: that trains it.
            step: of the stage, how many are done.
            write: fills a folder that is there with a pipeline.
        """
        failure = f"step {step} of {stage} was not pushed to {self.repo_id}"
        if self._last is not None and not self._last.done():
            self.report(f"{failure}: the push before is still under way.")
            return
        with _failure_reported(failure, self.report):
            with full_disk_in_words(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                write(self.folder)
            self._last = self._api.run_as_future(self._push, f"Stage {stage}, step {step}", failure)

    def end(self) -> None:
        """Wait for the push that is under way, and leave nothing of it in the folder."""
        if self._last is not None:
            self._last.result()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _push(self, message: str, failure: str) -> None:
        with _failure_reported(failure, self.report), _without_bars():
            push(self.folder, self.repo_id, private=self.private, revision=self.BRANCH, message=message)


@contextmanager
def _failure_reported(failure: str, report: Callable[[str], None]) -> Iterator[None]:
    """Within, whatever goes wrong is one sentence: hours of training are worth more than what made a push fail."""
    try:
        yield
    except Exception as error:
        report(f"{failure}: {error}")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the progress bars of huggingface_hub, which would lie across that of the training."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _model_files(folder: Path) -> dict[str, Content]:
    """The files of a pipeline or of a ControlNet of ours, by their names in the repository."""
    if folder.is_file():
        raise HubError(f"{folder} is a file: give the folder of a saved pipeline or ControlNet, as {folder.parent}.")
    if not folder.is_dir():
        raise HubError(f"the folder {folder} does not exist: give the folder of a saved pipeline or ControlNet.")
    if (folder / INDEX).is_file():
        check_folder(folder, ())
        parts = components(json.loads((folder / INDEX).read_text("utf-8")))
        files = {INDEX: folder / INDEX, **{f"{part}/{p.name}": p for part in parts for p in _of_model(folder / part)}}
        if (folder / ADAPTERS).is_file():
            files[ADAPTERS] = folder / ADAPTERS
        config = folder / "controlnet" / CONFIG
    else:
        files, config = {path.name: path for path in _of_model(folder)}, folder / CONFIG
        if not config.is_file() or not _has(list(files), {".safetensors"}):
            raise HubError(
                f"{folder} has no {INDEX}, and no {CONFIG} with safetensors weights either: give the folder of a saved"
                " pipeline or ControlNet."
            )
    if not records_conditioning(json.loads(config.read_text("utf-8"))):
        raise HubError(
            f"the ControlNet of {folder} does not record how it reads a picture: give a model made by this package."
        )
    return {name: _without_origin(path) for name, path in files.items()}


def _of_model(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if MODEL_FILE.fullmatch(path.name) and path.is_file()]


def _without_origin(path: Path) -> Content:
    if not path.name.endswith(CONFIG):
        return path
    return without_origin(path.read_text("utf-8")).encode()


def _surroundings(folder: Path, repo_id: str, license: str | None) -> dict[str, Content]:
    """What a repository has besides its model."""
    files: dict[str, Content] = {CARD: cards.model_card(folder, repo_id, license).encode()}
    if (folder / INDEX).is_file():
        files |= {name: text.encode() for name, text in sources().items()}
    sheet = beside(folder, cards.SHEET)
    return files if sheet is None else {**files, cards.SHEET: sheet}


def push_pairs(
    repo_id: str,
    source: str,
    *,
    size: int,
    splits: Mapping[str, int | None],
    license: str,
    path: str | os.PathLike | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push pairs that [`load_pairs`] reads as a dataset: parquet files and a card; [`pull_pairs`] reads them back.

    They are all pairs of the repository then: those of an earlier push are removed in the same commit, of each split.

    Args:
        repo_id: of the repository, which is made if there is none.
        source: as `load_pairs` takes it.
        size: side of the pictures in px.
        splits: how many pairs of each split, `None` for all.
        license: identifier of the pictures' licence, as the Hub has them.
        path: where the pairs lie.
        private: whether only its owner sees it.
        revision: a branch, which is made if there is none; by default `main`.
        token: by default the one of `hf auth login`.

    Raises:
        HubError: if the Hub refuses, or does not answer even after some time.
        ValueError: if there are no such pairs.
    """
    check_repo_id(repo_id)
    _check_revision(revision)
    if not splits:
        raise ValueError("there is no split to push: name some, as in {'train': None}.")
    with tempfile.TemporaryDirectory() as folder:
        counts = {}
        for split, count in splits.items():
            pairs = load_pairs(source, split=split, size=size, count=count, path=path)
            counts[split] = write_tables(pairs, split, Path(folder))
        card = cards.dataset_card(counts, masks_of(pairs), size, source, repo_id, license)
        files = {f"data/{table.name}": table for table in sorted(Path(folder).glob("*.parquet"))}
        files[CARD] = card.encode()
        return _push(repo_id, "dataset", files, private, revision, token, "Push pairs of backshan_diffusers", False)


def pull_pairs(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download pairs, or find them in the cache: the folder that `load_pairs("folder", path=...)` reads.

    Raises:
        HubError: if there is no such dataset, or it holds no parquet files.
    """
    check_repo_id(repo_id)
    _check_revision(revision)

    def download() -> Path:
        patterns = ["data/*.parquet"]
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, token=token, allow_patterns=patterns
        )
        return Path(folder)

    folder = _persistently(download, repo_id, revision, _pull_in_words)
    if not any(folder.glob("data/*.parquet")):
        raise MissingFileError(f"{repo_id} has no parquet files in its folder data: give a dataset of pairs.")
    return folder


def _push(
    repo_id: str,
    kind: str,
    files: Mapping[str, Content],
    private: bool,
    revision: str | None,
    token: str | None,
    message: str,
    create_pr: bool,
) -> CommitInfo:
    api = HfApi(token=token, library_name="backshan_diffusers", library_version=__version__)

    def attempt() -> CommitInfo:
        if CARD in files:
            _check_card(files[CARD].decode(), kind, repo_id)
        # made anew each time: what the last attempt has done is asked of the Hub
        made = api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        head = _head(api, made.repo_id, kind, revision)
        if private and not head.private:
            raise HubError(f"{repo_id} exists and is public: make it private on the Hub first, or give another name.")
        present = [each.rfilename for each in head.siblings]
        wanted = dict(files)
        if (CARD in present and CARD in wanted) and (
            adds_a_variant(present, list(wanted)) or not _card_is_ours(api, made.repo_id, kind, head.sha)
        ):
            del wanted[CARD]
        replaced = replaced_weights if kind == "model" else replaced_tables
        operations = [CommitOperationDelete(name) for name in replaced(present, list(wanted))]
        operations += [CommitOperationAdd(name, content) for name, content in wanted.items()]
        return api.create_commit(
            made.repo_id,
            operations,
            commit_message=message,
            repo_type=kind,
            revision=revision,
            parent_commit=head.sha,
            create_pr=create_pr,
        )

    return _persistently(attempt, repo_id, revision, _push_in_words)


def _check_card(card: str, kind: str, repo_id: str) -> None:
    """Refuse what the Hub would refuse, but before a repository is made, which would be left empty."""
    try:
        RepoCard(card).validate(kind)
    except ValueError as error:  # it holds the Hub's answer as it is
        faults = "; ".join(each["message"] for each in json.loads(str(error))["errors"])
        raise HubError(f"the Hub refuses the card of {repo_id}: {faults.rstrip('.')}.") from error


def _head(api: HfApi, repo_id: str, kind: str, revision: str | None):
    """What the Hub knows of a branch, which is made if there is none."""
    try:
        return api.repo_info(repo_id, repo_type=kind, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
        return api.repo_info(repo_id, repo_type=kind, revision=revision)


def _card_is_ours(api: HfApi, repo_id: str, kind: str, commit: str) -> bool:
    card = api.hf_hub_download(repo_id, CARD, repo_type=kind, revision=commit)
    return cards.is_ours(Path(card).read_text("utf-8"))


def replaced_weights(present: list[str], pushed: list[str]) -> list[str]:
    """Weights in a repository that would lie beside those that are pushed, for the same component and variant.

    diffusers would go on reading those in several files, say, where the new ones are in one. A pipeline without
    adapters replaces one that had some.
    """
    adapters = {ADAPTERS} if INDEX in pushed else set()
    places = {(PurePosixPath(name).parent, variant_of(name)) for name in pushed if variant_of(name) is not None}
    return [
        name
        for name in present
        if name not in pushed
        and variant_of(name) is not None
        and (name in adapters or (PurePosixPath(name).parent, variant_of(name)) in places)
    ]


def adds_a_variant(present: list[str], pushed: list[str]) -> bool:
    """Whether weights are pushed in a variant alone, to a repository whose card tells how to load the plain ones."""
    ours, theirs = (
        {(PurePosixPath(name).parent, variant_of(name)) for name in names if variant_of(name) is not None}
        for names in (pushed, present)
    )
    return bool(ours) and all(variant and (place, "") in theirs for place, variant in ours)


def replaced_tables(present: list[str], pushed: list[str]) -> list[str]:
    """Tables of earlier pairs, of any split: what is pushed are all pairs of the repository, as its card says."""
    return [name for name in present if TABLE.fullmatch(name) and name not in pushed]


def variant_of(name: str) -> str | None:
    """The variant of a file of weights or of their index, empty if it is none; `None` for any other file."""
    found = WEIGHTS.fullmatch(PurePosixPath(name).name)
    return None if found is None else found["variant"] or found["old"] or found["of_index"] or ""


def check_repo_id(repo_id: str) -> None:
    """Refuse what no repository can be called.

    Raises:
        HubError: in one sentence.
    """
    if not may_be_repo_id(repo_id):  # the code on a card has to name the owner too
        raise HubError(f"{repo_id!r} is no id of a repository: give one as owner/name.")


def _check_revision(revision: str | None) -> None:
    if revision == "":  # the Hub would be asked for something else
        raise HubError("the revision is empty: give a branch, or leave it out.")


def _persistently(
    attempt: Callable[[], Result],
    repo_id: str,
    revision: str | None,
    in_words: Callable[[Exception, str, str | None], HubError],
) -> Result:
    """What `attempt` returns, which is tried again where it fails for a reason that may pass.

    Args:
        attempt: asks something of the Hub.
        repo_id: of the repository.
        revision: that was asked for.
        in_words: says why it failed.

    Raises:
        HubError: if it fails for another reason, or too often.
    """
    waits = iter(WAITS_S)
    while True:
        try:
            with _no_endless_silence():
                return attempt()
        except HubError:
            raise
        except Exception as error:  # of huggingface_hub, httpx2 and hf_xet, which wrap each other's
            wait = next(waits, None)
            if wait is None or not _may_pass(error):
                raise in_words(error, repo_id, revision) from error
            logger.warning("the Hub failed (%s): trying again in %d s.", _first_line(error), wait)
        time.sleep(wait)


@contextmanager
def _no_endless_silence() -> Iterator[None]:
    """huggingface_hub waits forever for an answer to an upload."""
    session = get_session()
    before, session.timeout = session.timeout, STALLED_AFTER_S
    try:
        yield
    finally:
        session.timeout = before


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    return causes


def _may_pass(error: BaseException) -> bool:
    """Whether the same may succeed a little later."""
    causes = _causes(error)
    if isinstance(error, HubError) or _has_cause(error, OfflineModeIsEnabled):  # the former was judged already
        return False
    return any(isinstance(cause, WITHOUT_ANSWER) or _status(cause) in PASSING for cause in causes)


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _has_cause(error: BaseException, kind: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _pull_in_words(error: Exception, repo_id: str, revision: str | None) -> HubError:
    if _has_cause(error, OfflineModeIsEnabled):
        return UnreachableHubError(
            f"{repo_id} was not downloaded before, or not as a whole, and HF_HUB_OFFLINE is set: unset it, or copy the"
            " folder here."
        )
    if _has_cause(error, LocalEntryNotFoundError) and not _may_pass(error):
        return UnreachableHubError(
            f"{repo_id} was not downloaded before, or not as a whole, and local_files_only is set: leave it out, or"
            " copy the folder here."
        )
    if _has_cause(error, RevisionNotFoundError):
        return MissingRevisionError(f"{repo_id} has no revision {revision}: give a branch, a tag or a commit of it.")
    return _in_words(error, repo_id)


def loading_in_words(
    error: Exception,
    repo_id: str,
    revision: str | None,
    folder: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> HubError | None:
    """What a `from_pretrained` of diffusers should have said of a repository where it raised `error`.

    Args:
        error: that it raised.
        repo_id: of the repository.
        revision: that was asked for.
        folder: to which the repository was downloaded, if that is what is wrong.
        given: with which a pipeline is downloaded, as `variant` and the components that are passed; `None` for
            anything else.

    Returns:
        What to raise in its place; `None` if the repository has nothing to do with it.
    """
    if folder is not None:
        fault, _, _ = str(error).rpartition(": ")  # its remedy is for folders
        return MissingFileError(
            f"{repo_id} holds no whole pipeline ({fault.replace(f'{folder}{os.sep}', '')}): give another revision,"
            " pass that component, or ask its owner to push it again."
        )
    if isinstance(error, HubError):
        return None
    if isinstance(error, (OSError, ValueError)) and not may_be_repo_id(repo_id):
        return HubError(f"there is no folder {repo_id}, and it is no id of a repository: check the name.")
    if _has_cause(error, OF_HUB):
        return _pull_in_words(error, repo_id, revision)
    if given is None:
        return None
    if isinstance(error, RecursionError):
        return _damaged_index(repo_id, "it is nested too deeply")
    return _missing_weights(repo_id, revision, given) if isinstance(error, (OSError, ValueError)) else None


def _missing_weights(repo_id: str, revision: str | None, given: Mapping[str, Any]) -> HubError | None:
    """What is wrong with the weights of a pipeline's repository, judged by the names of its files alone.

    Returns:
        What to say; `None` if they are not what is wrong, or the Hub cannot be asked.
    """
    try:
        info = HfApi(token=given.get("token")).model_info(repo_id, revision=revision)
    except Exception:  # then what was raised before is all there is to say
        return None
    listed = [each.rfilename for each in info.siblings]
    found: set[str] = set()
    lone: set[str] = set()
    for component in COMPONENTS_WITH_WEIGHTS:
        inside = [name for name in listed if name.startswith(f"{component}/")]
        if component in given or not inside:
            continue
        variants = {variant_of(name) for name in inside if name.endswith(".safetensors")}
        if not variants and _has(inside, PICKLES):
            return _only_a_pickle(repo_id, component)
        found |= variants
        lone |= variants if "" not in variants else set()
    wanted = given.get("variant")
    if wanted is None and lone:
        return MissingFileError(
            f"{repo_id} holds its weights only in the variant {min(lone)}: give variant={min(lone)!r}."
        )
    if wanted is not None and found and wanted not in found:
        others = [f"give variant={name!r}" if name else "leave it out" for name in sorted(found)]
        return MissingFileError(f"{repo_id} has no weights in the variant {wanted}: {', or '.join(others)}.")
    return None


def _only_a_pickle(repo_id: str, component: str) -> HubError:
    return HubError(
        f"{repo_id} has the weights of {component} only as a pickle, which could run any code: ask its owner for"
        " safetensors."
    )


def _damaged_index(repo_id: str, fault: str) -> HubError:
    return HubError(
        f"the {INDEX} of {repo_id} is damaged ({fault}): ask its owner to push it again, or give another revision."
    )


def _push_in_words(error: Exception, repo_id: str, revision: str | None) -> HubError:
    if _has_cause(error, OfflineModeIsEnabled):
        return UnreachableHubError(f"nothing can be pushed to {repo_id} while HF_HUB_OFFLINE is set: unset it.")
    if _has_cause(error, RevisionNotFoundError):
        return MissingRevisionError(f"{revision} is no branch of {repo_id}: give a branch, not a tag or a commit.")
    return _in_words(error, repo_id)


def _in_words(error: Exception, repo_id: str) -> HubError:
    """What is said of a pull and of a push alike."""
    causes = _causes(error)
    if _has_cause(error, GatedRepoError):
        return MissingRepoError(
            f"{repo_id} is gated: ask for access on its page on the Hub, and log in (hf auth login)."
        )
    if _has_cause(error, RepositoryNotFoundError):
        return MissingRepoError(
            f"{repo_id} does not exist, or is private and needs a token: check its name, or log in (hf auth login)."
        )
    if any(_status(cause) == OVERTAKEN for cause in causes):
        return UnreachableHubError(
            f"others push to {repo_id} at the same time and were faster each time: do the same again; what is complete"
            " is kept."
        )
    if _may_pass(error):
        return UnreachableHubError(
            f"the Hub does not answer as it should ({_first_line(causes[-1])}): do the same again later; what is"
            " complete is kept."
        )
    if absence := next((cause for cause in causes if isinstance(cause, RemoteEntryNotFoundError)), None):
        file = re.sub("^/(?:.*?/resolve/[^/]+/)?", "", unquote(absence.response.request.url.raw_path))
        return MissingFileError(f"{repo_id} lacks {file}: give a repository, a subfolder or a revision that has it.")
    if any(_status(cause) in (401, 403) for cause in causes):
        return HubError(f"this token may not do that with {repo_id}: log in with one that may (hf auth login).")
    reason = " ".join(str(error).split()) or type(error).__name__  # what the Hub says follows the first line
    return HubError(f"the Hub refuses what was asked of {repo_id}: {reason.rstrip('.')}.")
