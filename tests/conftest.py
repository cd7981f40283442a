"""What all tests share: no network, and the folder of reference data where there is one."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def testbed() -> Any:
    """The tokenizer of the testbed model: whole words."""
    from transformers import AutoTokenizer

    from tlprune.models.testbed_prompts import DIRECTORY

    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="session")
def gpt2(data_dir: Path) -> Any:
    """The tokenizer of GPT-2: byte pairs."""
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast.from_pretrained(data_dir / "tokenizers" / "gpt2")


@pytest.fixture(scope="session")
def bert(data_dir: Path) -> Any:
    """The tokenizer of BERT: word pieces, and the sentence that each is of."""
    from transformers import BertTokenizerFast

    return BertTokenizerFast.from_pretrained(data_dir / "tokenizers" / "bert-base-uncased")


@pytest.fixture(scope="session")
def roberta(data_dir: Path) -> Any:
    """The tokenizer of RoBERTa: byte pairs, sentences not told apart."""
    from transformers import RobertaTokenizerFast

    return RobertaTokenizerFast.from_pretrained(data_dir / "tokenizers" / "roberta-base")


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Any:
    """The tokenizer of stories260K: short pieces, bytes, spaces of their own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")
