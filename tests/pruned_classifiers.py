"""Tiny BERT classifiers on a disk, and what finds circuits of their weights without any data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.scores import Scores
from tlprune.selection.ranked import Top

PRUNABLE = "blocks.*.W_*|blocks.*.b_*|pooler.*"


def saved_classifier(folder: Path, trunk: Path, **settings: Any) -> Path:
    """A random classifier of the shape of a BERT in a folder, with its tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertForSequenceClassification(BertConfig.from_pretrained(trunk, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(trunk).save_pretrained(folder)
    return folder


def half(model: Any, pattern: str = PRUNABLE, *, unit: Any = "weight", seed: int = 0) -> tp.Circuit:
    """A circuit of half of the weights, which says which model it is of."""
    sites = tp.weights(model, pattern, unit=unit)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.5
    return tp.Circuit(sites, kept, {"model": backend_of(model).fingerprint()})


def half_of_folder(folder: Path, path: Path, **options: Any) -> tp.Circuit:
    """The same of a model in a folder, saved."""
    circuit = half(tp.load(folder, device="cpu"), **options)
    circuit.save(path)
    return circuit


@dataclass(frozen=True)
class Size:
    """Weights by size, or the smallest first, which would take those that are gone before all others."""

    sign: float = 1.0
    pattern: str = PRUNABLE
    selection: Any = field(default_factory=Top)

    def score(self, model: Any, task: Any) -> Scores:
        sites, parameters = tp.weights(model, self.pattern), backend_of(model).parameters()
        group: Any = sites.groups[0]
        sizes = [parameters[matrix.name].detach().abs().flatten() for matrix in group.matrices]
        return Scores(sites, self.sign * torch.cat(sizes), {"model": backend_of(model).fingerprint()})


def zeros_where(state: dict[str, Tensor], removed: Any) -> bool:
    return all(bool((state[name][where] == 0).all()) for name, where in removed.items())
