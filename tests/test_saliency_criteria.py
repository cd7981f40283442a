"""Criteria of one-shot pruning against what plain transformers, torch hooks and loops give, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bridges import hf_model as hf_decoder
from encoders import LENGTH, VOCABULARY, hf_model_of, mask_of
from styles import SHAPE
from torch import Tensor

import tlprune as tp
from tlprune.methods.saliency import saliency_scores
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.sites import Weights
from tlprune.task import Batch, Stream, Tokenisation, Tokens

EXAMPLES, BATCH = 7, 3
PLAIN = {
    "Magnitude": tp.Magnitude(),
    "MagnitudeGradient": tp.MagnitudeGradient(),
    "MagnitudeActivation": tp.MagnitudeActivation(),
    "GradCAM": tp.GradCAM(),
    "GradCAM shift": tp.GradCAM(shift=10),
    "GradCAM product": tp.GradCAM(shift=10, shifted="product"),
    "SNIP": tp.SNIP(),
    "Wanda": tp.Wanda(),
}
SMOOTH = {
    "SmoothGrad": tp.SmoothGrad(samples=3, scale=0.1),
    "SmoothGradCAM": tp.SmoothGradCAM(samples=3, scale=0.1),
    "SmoothGradCAM shift": tp.SmoothGradCAM(samples=3, scale=0.1, shift=10),
}
CRITERIA = PLAIN | SMOOTH


# ---- models and tasks


@dataclass(frozen=True)
class Case:
    """A model of plain transformers, the same one masked, and the loss of some rows written out by hand.

    Attributes:
        plain: the transformers model.
        model: the TransformerLens model.
        batch: training examples, padded.
        loss: from the plain model and a batch to the mean loss.
        tensors: for each scored tensor of TransformerLens its plain linear layer, whether it is the weight, and how to
            bring it to TransformerLens' layout.
    """

    plain: Any
    model: Any
    batch: Batch
    loss: Callable[[Any, Batch], Tensor]
    tensors: dict[str, tuple[torch.nn.Module, str, Callable[[Tensor], Tensor]]]

    @property
    def task(self) -> tp.Task:
        return task_of(self.batch)


def task_of(batch: Batch) -> tp.Task:
    stream = Stream(batch, batch.rows(torch.arange(1)), batch.rows(torch.arange(1)))
    return tp.Task("labelled", {"main": stream}, Tokenisation(True, "right", "prompt"))


def labelled(seed: int, *, vocabulary: int, answers: int, types: bool, side: str = "right") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(EXAMPLES, side)
    ids = torch.randint(3, vocabulary, (EXAMPLES, LENGTH), generator=generator) * mask
    kinds = (torch.arange(LENGTH) >= 3).long().expand(EXAMPLES, LENGTH) * mask if types else None
    tokens = Tokens(ids, mask, kinds)
    right = torch.randint(0, answers, (EXAMPLES, 1), generator=generator)
    last = mask.cumsum(1).argmax(1, keepdim=True)
    where = torch.zeros_like(right) if types else last
    return Batch(torch.arange(EXAMPLES), tokens, tokens, where, right, torch.full_like(right, -100))


def by_heads(heads: int) -> Callable[[Tensor], Tensor]:
    """``(head * d, input)`` to ``(head, input, d)``, and biases to ``(head, d)``."""
    return lambda t: t.unflatten(0, (heads, -1)).transpose(1, 2) if t.dim() == 2 else t.unflatten(0, (heads, -1))


def to_heads(heads: int) -> Callable[[Tensor], Tensor]:
    """``(output, head * d)`` to ``(head, d, output)``; biases stay."""
    return lambda t: t.t().unflatten(0, (heads, -1)) if t.dim() == 2 else t


def turned(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def bert_tensors(plain: Any) -> dict[str, tuple[torch.nn.Module, str, Callable[[Tensor], Tensor]]]:
    heads, found = plain.config.num_attention_heads, {}
    for index, layer in enumerate(plain.bert.encoder.layer):
        block, own = f"blocks.{index}", layer.attention.self
        for part, module in (("Q", own.query), ("K", own.key), ("V", own.value)):
            found |= pair(f"{block}.attn.", part, module, by_heads(heads))
        found |= pair(f"{block}.attn.", "O", layer.attention.output.dense, to_heads(heads))
        found |= pair(f"{block}.mlp.", "in", layer.intermediate.dense, turned)
        found |= pair(f"{block}.mlp.", "out", layer.output.dense, turned)
    pooler = plain.bert.pooler.dense
    return found | {"pooler.W": (pooler, "weight", turned), "pooler.b": (pooler, "bias", turned)}


def pair(path: str, part: str, module: Any, layout: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    found = {f"{path}W_{part}": (module, "weight", layout)}
    return found | ({f"{path}b_{part}": (module, "bias", layout)} if module.bias is not None else {})


def llama_tensors(plain: Any) -> dict[str, tuple[torch.nn.Module, str, Callable[[Tensor], Tensor]]]:
    config, found = plain.config, {}
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for index, layer in enumerate(plain.model.layers):
        block, own = f"blocks.{index}", layer.self_attn
        found |= pair(f"{block}.attn.", "Q", own.q_proj, by_heads(heads))
        found |= pair(f"{block}.attn.", "K", own.k_proj, by_heads(groups))
        found |= pair(f"{block}.attn.", "V", own.v_proj, by_heads(groups))
        found |= pair(f"{block}.attn.", "O", own.o_proj, to_heads(heads))
        for part, module in (("gate", "gate_proj"), ("in", "up_proj"), ("out", "down_proj")):
            found |= pair(f"{block}.mlp.", part, getattr(layer.mlp, module), turned)
    return found


def gpt2_tensors(plain: Any) -> dict[str, tuple[torch.nn.Module, str, Callable[[Tensor], Tensor]]]:
    """Of Conv1D layers, which store inputs first; q, k and v are one layer."""
    heads, found = plain.config.n_head, {}

    def third(place: int) -> Callable[[Tensor], Tensor]:
        return lambda t: by_heads(heads)((t.t() if t.dim() == 2 else t).chunk(3)[place])

    for index, layer in enumerate(plain.transformer.h):
        block, own = f"blocks.{index}", layer.attn
        for place, part in enumerate("QKV"):
            found |= pair(f"{block}.attn.", part, own.c_attn, third(place))
        out = lambda t: t.unflatten(0, (heads, -1)) if t.dim() == 2 else t  # noqa: E731
        found |= pair(f"{block}.attn.", "O", own.c_proj, out)
        found |= pair(f"{block}.mlp.", "in", layer.mlp.c_fc, lambda t: t)
        found |= pair(f"{block}.mlp.", "out", layer.mlp.c_proj, lambda t: t)
    return found


def class_loss(plain: Any, batch: Batch) -> Tensor:
    return F.cross_entropy(logits_of(plain, batch), batch.answers[:, 0])


def number_loss(plain: Any, batch: Batch) -> Tensor:
    assert batch.targets is not None
    return ((logits_of(plain, batch)[:, 0] - batch.targets) ** 2).mean()


def logits_of(plain: Any, batch: Batch) -> Tensor:
    tokens = batch.clean
    return plain(tokens.ids, attention_mask=tokens.attention_mask, token_type_ids=tokens.token_types).logits


def word_loss(plain: Any, batch: Batch) -> Tensor:
    logits = plain(batch.clean.ids, attention_mask=batch.clean.attention_mask).logits
    return F.cross_entropy(logits[torch.arange(len(batch)), batch.positions[:, 0]], batch.answers[:, 0])


def encoder_case(name: str) -> Case:
    plain = hf_model_of(name)
    batch, loss = labelled(4, vocabulary=VOCABULARY, answers=3, types=True), class_loss
    if name == "bert number":
        numbers = torch.randn(EXAMPLES, generator=torch.Generator().manual_seed(5))
        batch = replace(batch, answers=torch.full_like(batch.answers, -100), targets=numbers)
        loss = number_loss
    model = tp.from_huggingface(plain, device="cpu") if has_hooked_transformer() else tp.bridge(deepcopy(plain))
    return Case(plain, model, batch, loss, bert_tensors(plain))


def decoder_case(kind: str) -> Case:
    plain = hf_decoder(kind)
    batch = labelled(6, vocabulary=SHAPE["d_vocab"], answers=SHAPE["d_vocab"], types=False)
    tensors = gpt2_tensors(plain) if kind == "gpt2" else llama_tensors(plain)
    model = tp.from_huggingface(plain, device="cpu") if has_hooked_transformer() else tp.bridge(deepcopy(plain))
    return Case(plain, model, batch, word_loss, tensors)


@cache
def case_of(name: str) -> Case:
    kind = name.removesuffix(" through a bridge")
    case = encoder_case(kind) if kind.startswith("bert") else decoder_case(kind)
    return replace(case, model=tp.bridge(deepcopy(case.plain))) if name != kind else case


# Hugging Face computes RMSNorm and the softmax of Llama in float32, whatever the weights are.
TOLERANCE = {"llama": 1e-5, "llama through a bridge": 1e-5}
CASES = ("bert classes", "bert number", "bert classes through a bridge", "gpt2", "gpt2 through a bridge", *TOLERANCE)


# ---- by hand


@dataclass
class Looked:
    """One plain run of one batch: gradients, and inputs and outputs of linear layers at real tokens."""

    gradients: dict[torch.nn.Module, dict[str, Tensor]]
    inputs: dict[torch.nn.Module, Tensor]
    outputs: dict[torch.nn.Module, Tensor]


def look(case: Case, batch: Batch, noises: dict[torch.nn.Module, Tensor] | None = None) -> Looked:
    inputs, outputs = {}, {}
    assert batch.clean.attention_mask is not None
    real = batch.clean.attention_mask.bool()

    def hook(module: torch.nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        pick = (lambda value: value[real]) if output.dim() == 3 else (lambda value: value)
        inputs[module], outputs[module] = pick(given[0]).detach(), pick(output).detach()
        return None if noises is None else output + noises[module].view(output.shape)

    modules = {module for module, _, _ in case.tensors.values()}
    handles = [module.register_forward_hook(hook) for module in modules]
    case.plain.zero_grad()
    case.loss(case.plain, batch).backward()
    for handle in handles:
        handle.remove()
    gradients = {m: {n: p.grad.clone() for n, p in m.named_parameters()} for m in modules}
    return Looked(gradients, inputs, outputs)


def batches_of(case: Case, seed: int = 0) -> Iterator[Batch]:
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(seed))
    for rows in order.split(BATCH):
        batch = case.batch.rows(rows)
        yield replace(batch, clean=batch.clean.trimmed(), corrupt=batch.clean.trimmed())


def wide(module: torch.nn.Module, row: Tensor, kind: str, *, outputs: bool) -> Tensor:
    """A number for each output or input, next to each of the layer's weights, or its biases."""
    if kind == "bias":
        return row if outputs else torch.ones_like(module.bias)
    outputs_first = isinstance(module, torch.nn.Linear)
    along_rows = outputs == outputs_first
    return (row[:, None] if along_rows else row[None]).expand(module.weight.shape)


def by_hand(case: Case, name: str, criterion: Any) -> Tensor:
    """The score of every element of one tensor, in TransformerLens' layout."""
    module, kind, layout = case.tensors[name]
    weight = dict(module.named_parameters())[kind].detach()
    total, summed, squares, count, answers = torch.zeros_like(weight), torch.zeros_like(weight), 0.0, 0, 0
    for number, batch in enumerate(batches_of(case)):
        seen = looked(case_name(case), number)
        gradient = seen.gradients[module][kind]
        y = wide(module, seen.outputs[module].mean(0), kind, outputs=True)
        x = wide(module, seen.inputs[module].mean(0), kind, outputs=False)
        if isinstance(criterion, (tp.SmoothGrad, tp.SmoothGradCAM)):
            gradient = smooth_gradient(case_name(case), number, module, kind)
        shift = getattr(criterion, "shift", 0)
        if isinstance(criterion, (tp.MagnitudeGradient, tp.SmoothGrad)):
            total += (weight * gradient).abs()
        elif isinstance(criterion, tp.MagnitudeActivation):
            total += weight.abs() * x.abs()
        elif isinstance(criterion, tp.GradCAM) and criterion.shifted == "product":
            total += (10 + weight * gradient * y).abs()
        elif isinstance(criterion, (tp.GradCAM, tp.SmoothGradCAM)):
            total += (weight * gradient * (shift + y)).abs()
        summed += gradient * len(batch)
        squares = squares + wide(module, (seen.inputs[module] ** 2).sum(0), "weight", outputs=False)
        count, answers = count + len(seen.inputs[module]), answers + len(batch)
    if isinstance(criterion, tp.Magnitude):
        total = weight.abs()
    if isinstance(criterion, tp.SNIP):
        total = (weight * summed / answers).abs()
    if isinstance(criterion, tp.Wanda):
        total = weight.abs() * (squares if kind == "weight" else torch.tensor(float(count))) ** 0.5
    return layout(total)


def case_name(case: Case) -> str:
    return next(name for name in CASES if case_of(name) is case)


@cache
def looked(name: str, number: int) -> Looked:
    case = case_of(name)
    return look(case, list(batches_of(case))[number])


def smooth_gradient(name: str, number: int, module: torch.nn.Module, kind: str) -> Tensor:
    return torch.stack([one.gradients[module][kind] for one in noised(name)[number]]).mean(0)


@cache
def noised(name: str) -> list[list[Looked]]:
    """Three passes of each batch, with the noise of each linear map from a generator of its own."""
    case = case_of(name)
    weights = sorted(one for one, (_, kind, _) in case.tensors.items() if kind == "weight")
    generators = {one: torch.Generator().manual_seed((1 + n) * 1_000_003) for n, one in enumerate(weights)}
    return [[look(case, batch, noises(case, batch, generators)) for _ in range(3)] for batch in batches_of(case)]


def noises(case: Case, batch: Batch, generators: dict[str, torch.Generator]) -> dict[torch.nn.Module, Tensor]:
    """A layer that is q, k and v in one gets theirs side by side."""
    parts: dict[torch.nn.Module, list[Tensor]] = {}
    shape = tuple(batch.clean.ids.shape)
    for name in case.tensors:
        module, kind, layout = case.tensors[name]
        if kind == "weight":
            outputs = layout(module.weight.detach())
            width = outputs.shape[0] * outputs.shape[2] if name.split("_")[-1] in "QKV" else outputs.shape[-1]
            lead = shape[:1] if name == "pooler.W" else shape
            drawn = torch.randn(*lead, width, generator=generators[name], dtype=torch.float64)
            parts.setdefault(module, []).append(0.1 * drawn)
    return {module: torch.cat(found, -1) for module, found in parts.items()}


@cache
def scores_of(name: str) -> dict[str, dict[str, Tensor]]:
    """Scores of every criterion from one pass, by tensor."""
    case = case_of(name)
    methods = [tp.Saliency(criterion=one, batch_size=BATCH) for one in CRITERIA.values()]
    found = saliency_scores(case.model, case.task, methods)
    group = found[0].sites.group("weights")
    assert isinstance(group, Weights)
    return {name: group.split(one.values) for name, one in zip(CRITERIA, found, strict=True)}


@pytest.mark.parametrize("criterion", PLAIN)
@pytest.mark.parametrize("name", CASES)
def test_a_criterion_is_what_hooks_and_loops_over_plain_transformers_give(name: str, criterion: str) -> None:
    case, found = case_of(name), scores_of(name)[criterion]
    assert {*found} == {*case.tensors}
    for tensor, values in found.items():
        expected = by_hand(case, tensor, CRITERIA[criterion])
        assert values.shape == expected.shape
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=TOLERANCE.get(name, 1e-11), msg=tensor)


@pytest.mark.parametrize("criterion", SMOOTH)
@pytest.mark.parametrize("name", ["bert classes", "gpt2"])
def test_a_smooth_criterion_is_what_noise_in_hooks_of_plain_transformers_gives(name: str, criterion: str) -> None:
    case, found = case_of(name), scores_of(name)[criterion]
    for tensor, values in found.items():
        expected = by_hand(case, tensor, CRITERIA[criterion])
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-11, msg=tensor)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_from_a_shared_pass_are_those_of_a_pass_alone(criterion: str) -> None:
    case = case_of("bert classes")
    alone = tp.Saliency(criterion=CRITERIA[criterion], batch_size=BATCH).score(case.model, case.task)
    shared = torch.cat([values.flatten() for values in scores_of("bert classes")[criterion].values()])
    torch.testing.assert_close(alone.values, shared, rtol=1e-9, atol=1e-12)


def test_the_sum_over_batches_goes_on_with_more_of_them_until_there_are_none() -> None:
    case = case_of("bert classes")
    one, two, all_of_them, more = (
        tp.Saliency(criterion=tp.GradCAM(), batch_size=BATCH, batches=count).score(case.model, case.task).values
        for count in (1, 2, 3, None)
    )
    assert bool((one <= two).all()) and bool((two <= all_of_them).all()) and not torch.equal(one, two)
    assert torch.equal(all_of_them, more) and not torch.equal(two, more)


def test_what_padding_holds_makes_no_difference() -> None:
    case = case_of("bert classes")
    tokens = case.batch.clean
    assert tokens.attention_mask is not None
    other = replace(tokens, ids=tokens.ids.where(tokens.attention_mask.bool(), torch.tensor(7)))
    methods = [tp.Saliency(criterion=one, batch_size=BATCH) for one in (tp.GradCAM(), tp.Wanda())]
    for before, after in zip(
        saliency_scores(case.model, case.task, methods),
        saliency_scores(case.model, task_of(replace(case.batch, clean=other, corrupt=other)), methods),
        strict=True,
    ):
        torch.testing.assert_close(before.values, after.values, rtol=1e-9, atol=1e-12)
