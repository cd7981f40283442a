"""Masks on what attention moves between spans: the plain definition, its limits, and what they compose with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from plain_crossing import keys_and_values, per_query_head, plain_crossed, silent
from styles import CLEAN, CORRUPT, OTHERS, backend_of_style, error, fresh, model_of, probe
from torch import Tensor

import tlprune as tp
from tlprune.task import Tokens

NAMES = ("subject", "verb")
SPANS = torch.tensor([[-1, 0, 0, -1, 1, -1], [0, 1, 1, 1, -1, 0], [-1] * 6])
PLACES = torch.where(SPANS < 0, 2, SPANS)
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
PADDED = {"none": None, "left": LEFT, "right": LEFT.flip(1)}
STYLES = ["gpt2", "llama", "parallel", "attention_only", "no_norm", "qk_norm", "gemma2"]
GROUPED = ("llama", "qk_norm", "gemma2")
KV = [(style, kv) for style in STYLES for kv in ("shared", "per_query_head") if kv == "shared" or style in GROUPED]


def sites_of(style: str, kv: Any = "shared", **options: Any) -> Any:
    return tp.attention_edges(model_of(style), spans=NAMES, kv=kv, **options)


def values_of(sites: Any, *lead: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 + 0.8 * torch.rand(*lead, len(sites), generator=generator, dtype=torch.float64)).requires_grad_()


def prompts(padding: str) -> tuple[Tokens, Tokens, Tensor]:
    """Prompts, their twins, and where a token is no padding."""
    mask = PADDED[padding]
    real = torch.ones_like(CLEAN.ids) if mask is None else mask
    return Tokens(CLEAN.ids, mask), Tokens(CORRUPT.ids, mask), real.bool()


def by_number(sites: Any, values: Tensor) -> dict[str, Tensor]:
    """Masks by the names of the slow reference, which has numbers for spans."""
    named = {sites.name(index): values[index] for index in range(len(sites))}
    numbers = {"subject": "0", "verb": "1", "rest": "2"}
    pairs = {name: name.partition("@")[2].split("->") for name in named}
    return {f"{name.partition('@')[0]}@{'->'.join(numbers[p] for p in pairs[name])}": m for name, m in named.items()}


def other_of(style: str, ablation: str, twins: Tokens) -> dict[str, Tensor]:
    model = model_of(style)
    if ablation == "mean":
        seen = backend_of_style(style).observe(OTHERS).streams
        first = [0 if len(seen) == model.cfg.n_layers + 1 else 2 * layer for layer in range(model.cfg.n_layers)]
        first = first if any(first) else list(range(model.cfg.n_layers))
        hooks = [
            (
                f"blocks.{layer}.hook_resid_pre",
                lambda value, hook, place=place: seen[place].mean((0, 1)).expand_as(value),
            )
            for layer, place in enumerate(first)
        ]
        return keys_and_values(model, twins, hooks)
    return keys_and_values(model, twins, silent(model) if ablation == "zero" else [])


ABLATIONS = {"resample": tp.Resample(), "zero": tp.Zero(), "mean": tp.Mean(OTHERS)}


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize(("style", "kv"), KV, ids=map("-".join, KV))
def test_each_query_sees_keys_and_values_mixed_for_its_own_span(style: str, kv: str, padding: str) -> None:
    """And so is the gradient by every mask."""
    tokens, twins, real = prompts(padding)
    sites, model = sites_of(style, kv), model_of(style)
    fast, slow = values_of(sites), values_of(sites)
    found = tp.Masked(model, tp.Masks(sites))(tokens, twins, mask=fast, spans=SPANS)
    with per_query_head(model, wanted=kv == "per_query_head"):
        expected = plain_crossed(model, tokens, by_number(sites, slow), PLACES, other_of(style, "resample", twins))
    assert error(found[real], expected[real]) <= 1e-9
    gradients = [
        torch.autograd.grad(probe(logits[real]), mask)[0] for logits, mask in ((found, fast), (expected, slow))
    ]
    assert error(gradients[0], gradients[1]) <= 1e-9
    assert gradients[0].abs().max() > 1e-5


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel", "no_norm"])
def test_ablated_keys_and_values_are_those_of_the_replacing_stream(style: str, ablation: str) -> None:
    sites, model = sites_of(style), model_of(style)
    values = values_of(sites).detach()
    found = tp.Masked(model, tp.Masks(sites), ABLATIONS[ablation])(CLEAN, mask=values, spans=SPANS)
    expected = plain_crossed(model, CLEAN, by_number(sites, values), PLACES, other_of(style, ablation, CORRUPT))
    assert error(found, expected) <= 1e-9


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_all_ones_is_the_model(style: str, ablation: str) -> None:
    sites, backend = sites_of(style), backend_of_style(style)
    masked = tp.Masked(backend.model, tp.Masks(sites), ABLATIONS[ablation])
    ones = torch.ones(len(sites), dtype=torch.float64)
    assert error(masked(CLEAN, CORRUPT, mask=ones, spans=SPANS), backend.logits(CLEAN, None)) <= 1e-9
    for same in (sites, tp.edges(backend.model, spans=NAMES) + sites, tp.heads(backend.model) + sites):
        masked = tp.Masked(backend.model, tp.Masks(same), ABLATIONS["resample"])
        found = masked(CLEAN, CLEAN, mask=values_of(same), spans=SPANS)  # each prompt is its own twin
        assert error(found, backend.logits(CLEAN, None)) <= 1e-9


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_head_without_any_is_that_of_the_twins_keys_and_values(style: str) -> None:
    """One run of the model with that head's keys and values replaced, whatever the spans."""
    model, sites = model_of(style), sites_of(style)
    own = "kv1" if style == "llama" else "h1"
    other = other_of(style, "resample", CORRUPT)

    def replaced(value: Tensor, hook: Any) -> Tensor:
        value[:, :, 1] = other[hook.name][:, :, 1]
        return value

    names = ["blocks.1.attn.hook_k", "blocks.1.attn.hook_v"]
    expected = model.run_with_hooks(CLEAN.ids, fwd_hooks=[(name, replaced) for name in names])
    gone = [name for name in all_names(sites) if name.startswith(f"a1.{own}<")]
    assert len(gone) == 2 * 9
    circuit = tp.Circuit.from_names(sites, set(all_names(sites)) - set(gone))
    assert error(tp.Masked(model, circuit)(CLEAN, CORRUPT, spans=SPANS), expected) <= 1e-9


def all_names(sites: Any) -> list[str]:
    return [sites.name(index) for index in range(len(sites))]


def zeroed(sites: Any, values: Tensor, names: list[str]) -> Tensor:
    gone = [sites.index(name) for name in names]
    return values.index_fill(0, torch.tensor(gone), 0.0)


@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("style", "kv"), KV, ids=map("-".join, KV))
def test_a_source_lost_to_all_queries_is_a_reader_that_lost_all_its_edges_there(
    style: str, kv: Any, ablation: str, norm: Any
) -> None:
    """Beside edges, nodes and neurons with masks of their own, and another mask for each example."""
    model = model_of(style)
    beside = tp.edges(model, spans=NAMES, kv=kv) + tp.nodes(model, "input|a0.h1|a1.h2")
    beside = beside if style == "attention_only" else beside + tp.neurons(model)
    both, values = beside + sites_of(style, kv), values_of(beside, 3).detach()
    readers = list(dict.fromkeys(name.partition("@")[0] for name in all_names(sites_of(style, kv))))[1::2]
    by_edges, by_pairs = values.clone(), torch.cat([values, torch.ones(3, len(both) - len(beside))], 1)
    for index, name in enumerate(all_names(both)):
        for reader in readers:
            if index < len(beside) and name.endswith(f"->{reader}@verb"):
                by_edges[:, index] = 0
            if index >= len(beside) and name.startswith(f"{reader}@verb->"):
                by_pairs[:, index] = 0
    assert (by_edges == 0).sum() > 3 * len(readers)
    assert (by_pairs == 0).sum() == 3 * 3 * len(readers)
    found, expected = (
        tp.Masked(model, tp.Masks(sites), ABLATIONS[ablation], norm=norm)(CLEAN, CORRUPT, mask=mask, spans=SPANS)
        for sites, mask in ((both, by_pairs), (beside, by_edges))
    )
    assert error(found, expected) <= 1e-9
    alone = tp.Masked(model, tp.Masks(both), ABLATIONS[ablation], norm=norm)
    rows = torch.tensor([1])
    one = alone(CLEAN.rows(rows), CORRUPT.rows(rows), mask=by_pairs[1], spans=SPANS[rows])
    assert error(one, found[rows]) <= 1e-9


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel", "gemma2"])
def test_gradients_are_finite_differences(style: str) -> None:
    model = model_of(style)
    sites = sites_of(style) + tp.edges(model, spans=NAMES) + tp.heads(model, "a1.*", spans=NAMES)
    masked = tp.Masked(model, tp.Masks(sites), tp.Zero() if style == "gpt2" else tp.Resample())
    mask, step = values_of(sites), 1e-5
    (gradient,) = torch.autograd.grad(probe(masked(CLEAN, CORRUPT, mask=mask, spans=SPANS)), mask)
    part = sites.part("attention_edges")
    for direction in (torch.randn(len(sites), dtype=torch.float64), torch.zeros(len(sites), dtype=torch.float64)):
        if not direction.any():
            direction[part] = torch.randn(part.stop - part.start, dtype=torch.float64)
        with torch.no_grad():
            ends = [
                probe(masked(CLEAN, CORRUPT, mask=mask + k * step * direction, spans=SPANS)) for k in (1, -1, 2, -2)
            ]
        slope = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * step)
        assert abs(slope - gradient @ direction) <= 1e-6 * float(gradient.norm())
    assert gradient[part].abs().max() > 1e-4


def test_what_no_query_can_see_has_no_effect() -> None:
    """In a prompt of one span after the other, later positions are hidden from earlier queries."""
    sites, model = sites_of("gpt2"), model_of("gpt2")
    spans = torch.tensor([[0, 0, 1, 1, -1, -1]]).expand(3, -1)
    mask = values_of(sites)
    logits = tp.Masked(model, tp.Masks(sites))(CLEAN, CORRUPT, mask=mask, spans=spans)
    (gradient,) = torch.autograd.grad(probe(logits), mask)
    order = {"subject": 0, "verb": 1, "rest": 2}
    ends = [tuple(order[span] for span in name.partition("@")[2].split("->")) for name in all_names(sites)]
    seen = torch.tensor([source <= query for source, query in ends])
    assert not gradient[~seen].any()
    assert bool(gradient[seen].all())


def test_without_a_single_edge_attention_edges_carry_what_is_there_anyway() -> None:
    """With all edges replaced keys and values are the twin's on either side of every mask."""
    backend = backend_of_style("llama")
    sites = tp.edges(backend.model) + sites_of("llama")
    mask = torch.cat([torch.zeros(len(tp.edges(backend.model)), dtype=torch.float64), values_of(sites_of("llama"))])
    found = tp.Masked(backend.model, tp.Masks(sites))(CLEAN, CORRUPT, mask=mask, spans=SPANS)
    assert error(found, backend.logits(CORRUPT, None)) <= 1e-9


def test_chosen_readers_and_pairs_leave_the_others_alone() -> None:
    model, every = model_of("gpt2"), sites_of("gpt2")
    pairs = ["verb->subject", "rest->verb"]
    few = sites_of("gpt2", pattern="a1.*<v>|a2.h0<k>", pairs=pairs)
    assert few.name(0) == "a1.h0<v>@verb->subject"
    assert len(few) == 5 * 2
    mask = values_of(few).detach()
    whole = torch.ones(len(every), dtype=torch.float64)
    whole[[every.index(name) for name in all_names(few)]] = mask
    found = tp.Masked(model, tp.Masks(few))(CLEAN, CORRUPT, mask=mask, spans=SPANS)
    assert error(found, tp.Masked(model, tp.Masks(every))(CLEAN, CORRUPT, mask=whole, spans=SPANS)) <= 1e-12
    assert error(found, model(CLEAN.ids)) > 1e-3


@pytest.mark.parametrize("name", ["copy", "induction"])
def test_circuits_are_kept_in_files_and_run_on_a_tasks_prompts(name: str, tmp_path: Path) -> None:
    planted = tp.planted(name)
    batch, spans = planted.task.test, planted.task.span_names
    sites = tp.attention_edges(planted.model, spans=spans) + tp.heads(planted.model, spans=spans)
    circuit = tp.Circuit.from_names(sites, all_names(sites)[::3])
    for suffix in (".json", ".safetensors"):
        circuit.save(tmp_path / f"circuit{suffix}")
        assert tp.Circuit.load(tmp_path / f"circuit{suffix}") == circuit
    numbers = torch.where(batch.spans < 0, len(spans), batch.spans)
    expected = tp.Masked(planted.model, circuit)(
        batch.clean, batch.corrupt, positions=batch.positions, spans=torch.where(numbers == len(spans), -1, numbers)
    )
    assert error(circuit.on(planted.model)(batch), expected) <= 1e-6
    assert error(expected, tp.Masked(planted.model, circuit.like(~circuit.kept))(batch)) > 1e-2
    renamed = tp.attention_edges(planted.model, spans=spans[::-1])
    same = [name for name in all_names(renamed) if name in circuit.names]
    mixed = tp.Circuit.from_names(renamed, same)
    own = tp.Circuit.from_names(tp.attention_edges(planted.model, spans=spans), same)
    assert error(mixed.on(planted.model)(batch), own.on(planted.model)(batch)) <= 1e-6


def test_what_readers_see_can_be_looked_at() -> None:
    """With an own head's values lost, the stream behind it is another; with none lost it is the model's."""
    model, sites = model_of("llama"), sites_of("llama", "per_query_head", pattern="a1.h0<v>")
    masked = tp.Masked(model, tp.Masks(sites))
    batch = tp.Batch(
        torch.arange(3), CLEAN, CORRUPT, torch.full((3, 1), 5), torch.zeros(3, 1, dtype=torch.long),
        torch.ones(3, 1, dtype=torch.long), spans=SPANS, span_names=NAMES,
    )  # fmt: skip
    plain = backend_of_style("llama").observe(CLEAN).streams
    for value, changed in ((1.0, False), (0.0, True)):
        mask = torch.full((len(sites),), value, dtype=torch.float64)
        logits, seen = masked.run_with_cache(batch, mask=mask)
        assert error(logits, masked(CLEAN, CORRUPT, mask=mask, spans=SPANS)) <= 1e-9
        assert error(seen["a1.h0<v>"], plain[2]) <= 1e-9
        assert (error(seen["m1"], plain[3]) > 1e-3) == changed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: tp.attention_edges(model, "m0", spans=NAMES), "matches none of this model's keys and values"),
        (lambda model: tp.attention_edges(model, spans=("a@b",)), "Spans need names that differ"),
        (lambda model: tp.attention_edges(model, spans=NAMES, pairs=["verb"]), "is written 'source->query'"),
        (lambda model: tp.attention_edges(model, spans=NAMES, pairs=["verb->noun"]), "but got verb->noun"),
        (lambda model: tp.attention_edges(model, spans=NAMES, pairs=["verb->verb"] * 2), "each pair once"),
        (lambda model: tp.attention_edges(model, spans=NAMES).index("a0.h0<q>@verb->verb"), "Write 'a0.h0<k>@subject"),
        (lambda model: tp.attention_edges(model, spans=NAMES) + tp.edges(model, spans=["end"]), "need the same spans"),
        (
            lambda model: tp.Masked(model, tp.Masks(tp.attention_edges(model, spans=NAMES) + tp.weights(model))),
            "alone",
        ),
        (lambda model: tp.Masked(model, tp.Masks(sites_of("llama"))), "but this model has those of a0.h0<k> to a2.h3"),
        (
            lambda model: tp.Masked(model, tp.Masks(tp.attention_edges(model, spans=NAMES)))(CLEAN, CORRUPT),
            "say nothing of spans",
        ),
        (
            lambda model: tp.Masked(model, tp.Masks(tp.attention_edges(model, spans=NAMES)), tp.GaussianNoise())(
                CLEAN, spans=SPANS
            ),
            "Choose Resample",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(model_of("gpt2"))


def test_readers_go_with_those_of_the_edges_beside_them() -> None:
    model = model_of("llama")
    for edges in (tp.edges(model), tp.edges(model, heads="joined")):
        tp.Masked(model, tp.Masks(edges + sites_of("llama")))
        with pytest.raises(ValueError, match="same kv="):
            tp.Masked(model, tp.Masks(edges + sites_of("llama", "per_query_head")))
    for edges in (tp.edges(model, kv="per_query_head"), tp.edges(model, qkv="joined")):
        tp.Masked(model, tp.Masks(edges + sites_of("llama", "per_query_head")))
        with pytest.raises(ValueError, match="same kv="):
            tp.Masked(model, tp.Masks(edges + sites_of("llama")))


def test_bfloat16_masks_round_as_the_model_does() -> None:
    exact, rough = (model_of("gpt2", dtype) for dtype in (torch.float32, torch.bfloat16))
    mask = values_of(sites_of("gpt2")).detach()
    found, expected = (
        tp.Masked(model, tp.Masks(sites_of("gpt2")))(CLEAN, CORRUPT, mask=mask, spans=SPANS).float()
        for model in (rough, exact)
    )
    plain = error(rough(CLEAN.ids).float(), exact(CLEAN.ids))
    assert error(found, expected) <= 2 * plain


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(("pairs", "copies"), [((), 3), (("verb->subject",), 2), (("verb->rest", "rest->subject"), 3)])
def test_attention_has_a_copy_for_each_kind_of_queries(pairs: Any, copies: int) -> None:
    """And readers of the residual stream have one."""
    model, seen = model_of("gpt2"), {}
    sites = sites_of("gpt2", pairs=pairs)
    masked = tp.Masked(model, tp.Masks(sites))
    masked(CLEAN, CORRUPT, mask=values_of(sites), spans=SPANS)
    for name in ("attn.hook_q", "hook_mlp_in"):
        model.hook_dict[f"blocks.1.{name}"].add_hook(lambda value, hook: seen.__setitem__(hook.name, len(value)))
    try:
        masked(CLEAN, CORRUPT, mask=values_of(sites), replaced=backend_of_style("gpt2").observe(CORRUPT), spans=SPANS)
    finally:
        model.reset_hooks()
    assert seen == {"blocks.1.attn.hook_q": 3 * copies, "blocks.1.hook_mlp_in": 3}


def test_without_named_spans_a_whole_prompt_is_one() -> None:
    model, sites = model_of("gpt2"), tp.attention_edges(model_of("gpt2"))
    assert sites.name(3) == "a0.h3<k>@rest->rest"
    mask = values_of(sites).detach()
    found = tp.Masked(model, tp.Masks(sites))(CLEAN, CORRUPT, mask=mask)
    every = sites_of("gpt2")
    named = mask[[sites.index(f"{name.partition('@')[0]}@rest->rest") for name in all_names(every)]]
    expected = tp.Masked(model, tp.Masks(every))(CLEAN, CORRUPT, mask=named, spans=SPANS)
    assert error(found, expected) <= 1e-9


def test_attended_pairs_are_those_whose_masks_do_something() -> None:
    planted = tp.planted("induction")
    task = planted.task
    pairs = tp.tasks.attended_pairs(task)
    assert set(pairs) == {
        *("key->key", "key->value", "key->end", "key->rest", "value->value", "value->end", "value->rest"),
        *("end->end", "rest->key", "rest->value", "rest->end", "rest->rest"),
    }
    every = tp.attention_edges(planted.model, spans=task.span_names)
    mask = values_of(every)
    logits = tp.Masked(planted.model, tp.Masks(every))(task.discovery.train(), mask=mask)
    (gradient,) = torch.autograd.grad(probe(logits), mask)
    acting = {every.name(index).partition("@")[2] for index in gradient.nonzero().flatten().tolist()}
    assert acting <= {*pairs}
    assert len(tp.attention_edges(planted.model, spans=task.span_names, pairs=pairs)) == 16 * 12
    assert tp.tasks.attended_pairs(tp.tasks.with_spans(task, [], lambda ids: {})) == ("rest->rest",)
    assert tp.tasks.attended_pairs(tp.tasks.covered(task))[:3] == ("..->..", "..->key", "..->value")


def test_a_task_stands_for_its_spans_and_the_pairs_that_attention_of_the_model_can_see() -> None:
    planted = tp.planted("induction")
    task = planted.task
    causal = tp.attention_edges(planted.model, spans=task)
    pairs = tp.tasks.attended_pairs(task)
    assert causal == tp.attention_edges(planted.model, spans=task.discovery)
    assert causal == tp.attention_edges(planted.model, spans=task.span_names, pairs=pairs)
    assert all_names(tp.attention_edges(planted.model, spans=task, pairs=["end->key"]))[0].endswith("@end->key")
    both_ways = tp.attention_edges(fresh("no_norm", attention_dir="bidirectional"), spans=task)
    assert any(name.endswith("@end->key") for name in all_names(both_ways))
    with pytest.raises(ValueError, match="names none"):
        tp.attention_edges(planted.model, spans=tp.tasks.with_spans(task, [], lambda ids: {}))
