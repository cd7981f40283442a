"""What every kind of model promises to masks on every kind of site, and the table of who keeps it.

A promise is kept whole or refused with a ValueError; anything else is a failure. ``docs/support.md`` is what came out:
``python scripts/support_matrix.py`` writes it, ``tests/test_contract.py`` holds the code to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import encoders
import huggingface_models
import torch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.sites import Sites
from tlprune.task import Tokens

DECODERS = ("gpt2", "neox", "neox-serial", "llama", "mistral-sliding", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
ENCODERS = ("bert classes", "bert number", "bert choices", "bert words", "bert", "roberta classes", "roberta words")
SITES: dict[str, Callable[[Any], Sites]] = {
    "edges": tp.edges,
    "edges, qkv joined": lambda model: tp.edges(model, qkv="joined"),
    "attention edges": tp.attention_edges,
    "nodes": tp.nodes,
    "heads": tp.heads,
    "mlps": tp.mlps,
    "layers": tp.layers,
    "neurons": tp.neurons,
    "weights": tp.weights,
}
ABLATIONS: dict[str, Callable[[Row], Any]] = {
    "Z": lambda row: tp.Zero(),
    "M": lambda row: tp.Mean(row.prompts(7)),
    "R": lambda row: tp.Resample(),
    "G": lambda row: tp.GaussianNoise(0.3, seed=1),
    "C": lambda row: row.constant(),
}
WHOLE = ("edges", "edges, qkv joined", "nodes")  # with none of these kept, nothing of the prompt is left


@dataclass(frozen=True)
class Row:
    """One architecture through one of TransformerLens' classes.

    Attributes:
        library: ``"HookedTransformer"``, ``"HookedEncoder"`` or ``"TransformerBridge"``.
        name: of the tiny model in ``huggingface_models`` or ``encoders``.
    """

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}: {self.name}"

    @property
    def encoder(self) -> bool:
        return self.name in ENCODERS

    def made(self, dtype: torch.dtype = torch.float64) -> Any:
        """A new model; a ValueError where it is refused."""
        if self.encoder:  # without kinks, so that slopes are gradients
            hf_model = encoders.hf_model_of(self.name, dtype, hidden_act="gelu")
        else:
            hf_model = huggingface_models.fresh_model(self.name, dtype)
        if self.library == "TransformerBridge":
            return tp.bridge(hf_model)
        return tp.from_huggingface(hf_model, device="cpu")

    @property
    def model(self) -> Any:
        return _kept(self)

    def prompts(self, seed: int = 1, *, padding: str | None = None) -> Tokens:
        if self.encoder:
            return encoders.prompts(self.name, seed, padding=padding)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(huggingface_models.VOCABULARY, (3, encoders.LENGTH), generator=generator)
        return Tokens(ids, None if padding is None else encoders.mask_of(3, padding))

    @torch.no_grad()
    def constant(self) -> Any:
        """Constants that say something in every place."""
        found = tp.Constant(self.model, tp.Mean(self.prompts(7)), neurons=tuple(range(self.model.cfg.n_layers)))
        generator = torch.Generator().manual_seed(2)
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))
        return found


@cache
def _kept(row: Row) -> Any:
    return row.made()


def rows() -> list[Row]:
    """Every row that this TransformerLens can have."""
    found = [Row("TransformerBridge", name) for name in (*DECODERS, *ENCODERS)]
    if has_hooked_transformer():
        found = [
            *(Row("HookedTransformer", name) for name in DECODERS),
            *(Row("HookedEncoder", name) for name in ENCODERS),
            *found,
        ]
    return found


# ---- the promises


def support(row: Row, sites: str) -> str:
    """The ablations that work on these sites, by letter; empty where the model or the sites are refused.

    Raises:
        AssertionError: something runs and is wrong.
    """
    try:
        own = SITES[sites](row.model)
    except ValueError as refusal:
        check_refusal(refusal)
        return ""
    return "".join(letter for letter in ABLATIONS if _holds(row, sites, own, letter))


def _holds(row: Row, name: str, sites: Sites, letter: str) -> bool:
    try:
        ablation = ABLATIONS[letter](row)
        masked = tp.Masked(row.model, tp.Masks(sites), ablation)
        masked(row.prompts(), row.prompts(2), mask=torch.ones(len(sites)))
    except ValueError as refusal:
        check_refusal(refusal)
        return False
    before = state(row.model)
    everything_kept_is_the_model(row, masked)
    if name in WHOLE and letter != "G":
        nothing_kept_knows_nothing_of_the_prompt(row, masked, letter)
    if letter == "R" and name != "weights":
        what_is_replaced_by_itself_changes_nothing(row, masked)
    if letter in "ZR":
        gradients_are_slopes(row, masked)
    assert state(row.model) == before, "the model was changed"
    return True


def everything_kept_is_the_model(row: Row, masked: Any) -> None:
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    same(row, masked(row.prompts(), row.prompts(2), mask=ones), plain(row, row.prompts()))


def nothing_kept_knows_nothing_of_the_prompt(row: Row, masked: Any, letter: str) -> None:
    zeros, others = torch.zeros(len(masked.sites), dtype=torch.float64), row.prompts(2)
    first, second = (masked(row.prompts(seed), others, mask=zeros) for seed in (1, 3))
    same(row, first, second)
    if letter == "R":
        same(row, first, plain(row, others))


def what_is_replaced_by_itself_changes_nothing(row: Row, masked: Any) -> None:
    same(row, masked(row.prompts(), row.prompts(), mask=some(masked)), plain(row, row.prompts()))


def gradients_are_slopes(row: Row, masked: Any) -> None:
    """Along a random direction, by differences of fourth order; the step suits the precision that norms have."""
    step, allowed = (1e-5, 1e-5) if backend_of(row.model).precision == torch.float64 else (1e-3, 5e-2)
    mask = some(masked).requires_grad_()
    direction = torch.randn(len(mask), generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def value(at: Tensor) -> Tensor:
        logits = masked(row.prompts(), row.prompts(2), mask=at)
        weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return (logits.double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(mask), mask)
    with torch.no_grad():
        near, far = (value(mask + k * step * direction) - value(mask - k * step * direction) for k in (1, 2))
    slope, expected = float(8 * near - far) / (12 * step), float((gradient * direction).sum())
    assert gradient.any(), "no gradient reaches the masks"
    assert abs(slope - expected) <= allowed * float(gradient.norm()), (slope, expected, float(gradient.norm()))


def padding_sides(row: Row) -> str:
    """The sides on which prompts may be padded: every prompt then says what it says alone.

    BERT numbers positions from the first, padding or not, and classifiers read the first: their prompts begin there.
    """
    only_right = row.encoder and row.name != "roberta words"
    model, found = row.made(torch.float32), ""
    for letter, side in ({"R": "right"} if only_right else {"L": "left", "R": "right"}).items():
        try:
            padded, twins = row.prompts(padding=side), row.prompts(2, padding=side)
            masked = tp.Masked(model, tp.Masks(tp.edges(model)))
            together = masked(padded, twins, mask=some(masked).float())
        except ValueError as refusal:
            check_refusal(refusal)
            continue
        assert padded.attention_mask is not None
        for place, real in enumerate(padded.attention_mask.bool()):
            own = (_unpadded(padded, place, real), _unpadded(twins, place, real))
            alone = masked(*own, mask=some(masked).float())[0]
            close(together[place, real] if together.shape[1] == len(real) else together[place], alone, 1e-4)
        found += letter
    return found


def low_precision(row: Row) -> str:
    """``yes`` where all kept is the model in bfloat16, as far as its steps of 0.4% go."""
    try:
        model = row.made(torch.bfloat16)
        masked = tp.Masked(model, tp.Masks(tp.edges(model)))
        found = masked(row.prompts(), row.prompts(2), mask=torch.ones(len(masked.sites)))
    except ValueError as refusal:
        check_refusal(refusal)
        return ""
    expected = backend_of(model).logits(row.prompts(), None)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).abs().max()) <= 0.2 * max(1.0, float(expected.abs().max()))
    return "yes"


# ---- what they are made of


def _unpadded(tokens: Tokens, place: int, real: Tensor) -> Tokens:
    types = None if tokens.token_types is None else tokens.token_types[place : place + 1, real]
    return Tokens(tokens.ids[place : place + 1, real], None, types)


def some(masked: Any) -> Tensor:
    """Mask values in (0.1, 0.9)."""
    values = torch.rand(len(masked.sites), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return 0.1 + 0.8 * values


def plain(row: Row, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        return backend_of(row.model).logits(tokens, None)


def same(row: Row, found: Tensor, expected: Tensor) -> None:
    close(found, expected, 1e-9 if backend_of(row.model).precision == torch.float64 else 1e-5)


def close(found: Tensor, expected: Tensor, allowed: float) -> None:
    assert found.shape == expected.shape
    difference = float((found - expected).detach().abs().max())
    assert difference <= allowed * max(1.0, float(expected.detach().abs().max())), difference


def check_refusal(refusal: ValueError) -> None:
    """A refusal says what to do, in a sentence of its own."""
    assert len(str(refusal).split(". ")) >= 2, refusal


def state(model: Any) -> tuple[Any, ...]:
    """What a call must leave as it was."""
    hooks = sum(len(point._forward_hooks) + len(point._backward_hooks) for point in model.hook_dict.values())
    weights = tuple((name, value.requires_grad, value._version) for name, value in model.named_parameters())
    return hooks, weights, model.training, str(vars(model.cfg))


# ---- the table

COLUMNS = (*SITES, "padding", "bfloat16")


def cell(row: Row, column: str) -> str:
    """What the table says of a row: letters of ablations, sides of padding, ``yes``, or a dash."""
    try:
        row.model  # noqa: B018
    except ValueError as refusal:
        check_refusal(refusal)
        return "-"
    found = {"padding": padding_sides, "bfloat16": low_precision}.get(column, lambda row: support(row, column))(row)
    return found or "-"


def table_row(row: Row) -> str:
    return f"| {row.library} | {row.name} | " + " | ".join(cell(row, column) for column in COLUMNS) + " |"
