"""What masks on heads and MLPs add to a run of an encoder: one pass over each masked activation, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders import hf_model_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import probe
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Point

NAME = "bert classes"
TOKENS = prompts(NAME, padding="right")
ACTIVATION = 3 * 7 * 24  # numbers in what the heads of a block, or its MLP, send
# What is masked, where that begins, and at how many points it is.
PATTERNS: dict[str, tuple[Point, int]] = {
    "a*|m*": (("heads", 0), 6),
    "a1*": (("heads", 1), 1),
    "m1|a2.h[03]": (("mlp", 1), 2),
    "m2": (("mlp", 2), 1),
}
each_kind = pytest.mark.parametrize("kind", [pytest.param("hooked", marks=NEEDS_HOOKED_TRANSFORMER), "bridge"])
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)


class Runs:
    """A masked run and a plain one, with everything at hand that a training step finds at hand."""

    def __init__(self, kind: str, pattern: str) -> None:
        whole = hf_model_of(NAME)
        model = tp.bridge(whole) if kind == "bridge" else tp.from_huggingface(whole, device="cpu")
        self.backend, sites = backend_of(model), tp.nodes(model, pattern)
        mean = tp.Mean(prompts(NAME, seed=2, padding="right")).measure(model)
        self.called = tp.Masked(model, tp.Masks(sites), mean)
        self.replaced = mean.replaced(self.backend, TOKENS, None, self.called.wanted)
        self.values = torch.linspace(0.1, 0.9, len(sites), dtype=torch.float64).requires_grad_()
        self.first, self.points = PATTERNS[pattern]
        self.masked()  # tests itself the first time

    def masked(self) -> Tensor:
        return probe(self.called(TOKENS, mask=self.values, replaced=self.replaced))

    def plain(self) -> Tensor:
        """Without masks; gradients reach the first activation that the masks cover, and no further."""
        return probe(self.backend.run(TOKENS, {self.first: lambda value: value.detach().requires_grad_()}, None))


def flops(run: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        run().backward()
    return counter.get_total_flops()


@each_pattern
@each_kind
def test_products_are_those_of_the_plain_run_back_to_the_first_mask(kind: str, pattern: str) -> None:
    runs = Runs(kind, pattern)
    assert flops(runs.masked) == flops(runs.plain)


class Calls(TorchDispatchMode):
    """Counts operators that make a new tensor of the size of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= ACTIVATION and not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return result


def calls(run: Callable[[], Tensor]) -> Counter[str]:
    with Calls() as seen, torch.no_grad():
        run()
    return seen.counts


@each_pattern
@each_kind
def test_each_masked_activation_is_passed_over_once(kind: str, pattern: str) -> None:
    runs = Runs(kind, pattern)
    assert calls(runs.masked) - calls(runs.plain) == Counter(lerp=runs.points)


def saved(run: Callable[[], Tensor]) -> int:
    """Numbers that autograd keeps for the backward."""
    sizes: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = run()
    del result
    return sum(sizes.values())


@each_pattern
@each_kind
def test_one_tensor_is_kept_for_each_masked_activation(kind: str, pattern: str) -> None:
    """And what lies in the shape of the masks: gates and means."""
    runs = Runs(kind, pattern)
    assert saved(runs.masked) <= saved(runs.plain) + runs.points * (ACTIVATION + 2 * 24)


@each_kind
def test_masks_of_one_are_the_model_to_the_bit(kind: str) -> None:
    runs = Runs(kind, "a*|m*")
    ones = torch.ones_like(runs.values)
    assert torch.equal(runs.called(TOKENS, mask=ones), runs.backend.logits(TOKENS, None))
