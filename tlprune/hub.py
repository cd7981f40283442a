"""Circuits on the Hugging Face hub: uploaded with a card, and read again by those who do not know who made them.

Of a repository only ``circuit.json`` or ``circuit.safetensors`` is read, after its size was looked at; neither can hold
code. Both are one commit's: the size that was looked at is that of the file that comes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlprune.card import card
from tlprune.circuit import MOST_NAMES, Circuit
from tlprune.files import MOST_BYTES, brief
from tlprune.versions import versions

# By name, with the most bytes that are downloaded: of names as many as are read, of bits those of 8 billion sites.
FILES = {"circuit.json": MOST_BYTES, "circuit.safetensors": 2**30}
CARD = "README.md"


def push(
    circuit: Circuit, repo_id: str, *, private: bool | None, revision: str | None, token: str | None, **told: Any
) -> str:
    """See :meth:`~tlprune.Circuit.push_to_hub`; ``told`` is for the card."""
    from huggingface_hub import HfApi

    text = card(circuit, repo_id, **told)
    api = HfApi(token=token, library_name="tlprune", library_version=versions()["tlprune"])
    with tempfile.TemporaryDirectory() as folder, _reached(repo_id):
        name = (
            "circuit.json"
            if len(circuit) <= MOST_NAMES and "weights" not in circuit.sites.kinds
            else "circuit.safetensors"
        )
        circuit.save(Path(folder) / name)
        (Path(folder) / CARD).write_text(text, encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=f"Upload {circuit!r}",
            delete_patterns=[other for other in FILES if other != name],
        )
    return str(commit.commit_url)


def pull(repo_id: str, *, revision: str | None, token: str | None) -> Circuit:
    """See :meth:`~tlprune.Circuit.from_hub`."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _reached(repo_id):
        try:
            path = _downloaded(repo_id, revision, token)
        except OfflineModeIsEnabled:
            path = _cached(repo_id, revision)
    return Circuit.load(path)


def _downloaded(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The file of the commit that a revision is now, once it is known to be no larger than it may be."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=token, library_name="tlprune", library_version=versions()["tlprune"])
    commit = api.repo_info(repo_id, revision=revision).sha
    found = [one for one in api.get_paths_info(repo_id, [*FILES], revision=commit) if isinstance(one, RepoFile)]
    if len(found) != 1 or found[0].path not in FILES:
        raise ValueError(
            f"{repo_id} needs {' or '.join(FILES)} but has {' and '.join(one.path for one in found) or 'neither'}. "
            "Name a repository that circuit.push_to_hub() wrote."
        )
    name, size = found[0].path, found[0].size
    if size > FILES[name]:
        raise ValueError(
            f"{name} of {repo_id} has {size:,} bytes, more than the {FILES[name]:,} that are downloaded. If you trust "
            "it, download it yourself and read it with tp.Circuit.load(path)."
        )
    return Path(api.hf_hub_download(repo_id, name, revision=commit))


def _cached(repo_id: str, revision: str | None) -> Path:
    """The file as it was when the hub was last in reach."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo_id, name, revision=revision) for name in FILES]
    for path in found:
        if isinstance(path, str):
            return Path(path)
    raise ValueError(
        f"{repo_id} is not in the cache, and the hub is out of reach while HF_HUB_OFFLINE is set. Unset it."
    )


@contextmanager
def _reached(repo_id: str) -> Iterator[None]:
    """Say what the hub says in one line."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"The hub does not serve {repo_id!r}: {brief(error)} Check the name, the revision and the token."
        ) from error
