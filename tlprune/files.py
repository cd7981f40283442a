"""Files that hold results: written whole or not at all, read with one clear error."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

METADATA = "tlprune"
MOST_BYTES = 2**28  # of a JSON file; names of a million sites take a tenth


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part, even after a power cut."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY)  # so that the new name is on the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_room(folder: Path, size: int) -> None:
    """Try whether a folder takes a file of so many bytes beside what it holds.

    Raises:
        OSError: it has no room for it, or cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # what is only asked for may not be there
            for begin in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - begin)))
            file.flush()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Tensors with plain data beside them, as one safetensors file."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {METADATA: json.dumps(data)}))


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote.

    Raises:
        ValueError: the file is missing, cut, or was not written by tlprune.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            data = _parsed((file.metadata() or {})[METADATA].encode())
            if not isinstance(data, dict):
                raise _NotJSONError
            return {name: file.get_tensor(name) for name in file.keys()}, data  # noqa: SIM118
    except OSError as error:
        raise ValueError(f"Cannot read the {what} {path}: {error.strerror or error}. Give an existing file.") from None
    except (SafetensorError, _NotJSONError, KeyError, ValueError):
        raise ValueError(f"{path} is not a {what}: give a file that tlprune saved, whole.") from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(
                f"{path} is no {what} that this reads: it has more than {MOST_BYTES:,} bytes. Use .safetensors."
            )
        data = _parsed(content)
    except OSError as error:
        raise ValueError(f"Cannot read the {what} {path}: {error.strerror}. Give the path of a saved {what}.") from None
    except _NotJSONError:
        raise ValueError(f"{path} is not a {what}: it is not JSON. Give a file that {what}.save() wrote.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is JSON but not a tlprune {what}. Give a file that {what}.save() wrote.")
    return data


class _NotJSONError(Exception):
    pass


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):  # the latter where lists lie in lists without end
        raise _NotJSONError from None


def brief(error: object) -> str:
    """What an error says, in one line of bearable length, whatever a file made it repeat.

    Example:
        >>> brief(ValueError("one line\\nand " + "very " * 200))[-12:]
        'very very...'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297].rstrip()}..."


def read_saved(path: Path, what: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and data of a ``.safetensors`` file, or the data of a JSON one, of this format and version."""
    tensors, data = read_tensors(path, what) if path.suffix == ".safetensors" else ({}, read_json(path, what))
    check_format(data, path, what, version)
    return tensors, data


def check_format(data: Mapping[str, Any], path: Path, what: str, version: int) -> None:
    """Raise a ValueError unless the data say that they are ours, and of this version."""
    if data.get("format") != f"tlprune-{what}":
        raise ValueError(f"{path} is not a tlprune {what}. Give a file that {what}.save() wrote.")
    if data.get("version") != version:
        found = brief(repr(data.get("version")))
        raise ValueError(f"{path} has format version {found} but this reads {version}. Save it again.")
