"""What all tests share: no network, and the folder of reference data where there is one."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

# Threads wait for each other far longer than the small products of tiny models take.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The reference data that ``TLPRUNE_DATA`` names; without it the test is skipped, or fails where it is required."""
    folder = os.environ.get("TLPRUNE_DATA")
    if folder:
        return Path(folder)
    reason = "TLPRUNE_DATA does not name the folder of reference models and tokenizers"
    if os.environ.get("TLPRUNE_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
