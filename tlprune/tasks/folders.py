"""Where data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(name: str) -> Path | None:
    """The folder of a data set in ``$TLPRUNE_DATA`` or ``$TLPRUNE_DATA/data``, if there is one.

    Example:
        >>> data_folder("no-such-data") is None
        True
    """
    root = os.environ.get("TLPRUNE_DATA")
    folders = [Path(root, name), Path(root, "data", name)] if root else []
    return next((folder for folder in folders if folder.is_dir()), None)
