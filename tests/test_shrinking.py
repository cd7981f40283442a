"""A shrunk model computes what the masked one does, with exactly what was removed missing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from encoders import MODELS as ENCODERS
from encoders import call_hf, fresh_encoder, hf_model_of
from encoders import prompts as encoder_prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from huggingface_models import LLAMA, MODELS, kept_model, randomise
from test_export import PROMPTS, REFERENCE, converted, masked_of
from torch import Tensor

import tlprune as tp
from tlprune.models.modeling_shrunk import FAMILIES, layers_of

pytestmark = NEEDS_HOOKED_TRANSFORMER
# Whatever is in transformers' float64 models, their RMSNorm and rotary angles are float32.
EXACT = ("gpt2", "bert", "roberta")
PADDING = torch.tensor([0, 3, 5])


@torch.no_grad()
def assert_same(found: Tensor, expected: Tensor, name: str) -> None:
    bound = (1e-12 if name.startswith(EXACT) else 1e-5) * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


@torch.no_grad()
def logits(model: Any, **options: Any) -> Tensor:
    return model(PROMPTS, **options).logits


def circuit_of(model: Any, sites: tp.Sites, removed: list[str]) -> tp.Circuit:
    """All but some sites."""
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[[sites.index(name) for name in removed]] = False
    return tp.Circuit(sites, kept)


def without(model: Any, removed: list[str], ablation: Any | None = None) -> tp.Masked:
    """A model without some heads, MLPs and neurons."""
    sites = tp.heads(model) + tp.mlps(model) + tp.neurons(model)
    return tp.Masked(model, circuit_of(model, sites, removed), ablation or tp.Zero())


def counts(model: Any) -> list[tuple[int, int, int]]:
    return [(len(layer.heads), len(layer.key_value_heads), len(layer.neurons)) for layer in model.sizes]


# ---- decoders


@pytest.mark.parametrize("kind", ["heads", "mlps", "layers", "neurons", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_masked_model(name: str, kind: str) -> None:
    masked = masked_of(converted(name), kind, tp.Zero())
    small = tp.shrink(masked)
    assert isinstance(small, type(kept_model(name)))
    assert_same(logits(small), masked(PROMPTS), name)
    assert_same(tp.from_huggingface(small, device="cpu")(PROMPTS), masked(PROMPTS), EXACT[0])
    assert small.num_parameters() < kept_model(name).num_parameters()


@pytest.mark.parametrize("ablation", ["mean", "constant"])
@pytest.mark.parametrize("kind", ["heads", "mlps", "layers", "neurons", "all"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "llama-biases", "mistral", "qwen2", "gemma"])
def test_means_go_into_biases_that_are_added_where_there_are_none(name: str, kind: str, ablation: str) -> None:
    model = converted(name)
    layers = tuple(range(model.cfg.n_layers)) if kind in ("neurons", "all") else ()
    mean = tp.Mean(REFERENCE)
    masked = masked_of(model, kind, mean if ablation == "mean" else tp.Constant(model, mean, neurons=layers))
    small = tp.shrink(masked)
    assert_same(logits(small), masked(PROMPTS), name)
    assert float((logits(small) - logits(tp.shrink(masked_of(model, kind, tp.Zero())))).abs().max()) > 1e-4
    assert any(layer.biases for layer in small.sizes) == (
        not name.startswith(("gpt2", "neox")) and not (name == "llama-biases" and kind == "heads")
    )


def test_a_mean_in_front_of_a_norm_has_a_place_and_one_behind_it_is_refused() -> None:
    model = converted("gemma2")
    masked = masked_of(model, "heads", tp.Mean(REFERENCE))
    assert_same(logits(tp.shrink(masked)), masked(PROMPTS), "gemma2")
    with pytest.raises(ValueError, match=r"mean of MLP \d belongs behind the norm.*Zero\(\)"):
        tp.shrink(masked_of(model, "mlps", tp.Mean(REFERENCE)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-sliding", "qwen2", "neox"])
def test_padding_counts_for_nothing(name: str, side: str, implementation: str) -> None:
    model = converted(name)
    masked = without(model, ["a0.h0", "a0.h1", "a0.h2", *(["a0.h3"] if name != "gpt2" else []), "a1.h1", "m1"])
    small = tp.shrink(masked)
    small.set_attn_implementation(implementation)
    places = torch.arange(PROMPTS.shape[1])
    real = places >= PADDING[:, None] if side == "left" else places < PROMPTS.shape[1] - PADDING[:, None]
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = small(PROMPTS, attention_mask=real.long(), position_ids=positions).logits
    expected = masked(tp.Tokens(PROMPTS, real.long()))
    # Mistral's float64 attention is done in float32 too.
    assert float((found - expected)[real].abs().max()) <= 1e-5
    assert len(counts(small)) and counts(small)[0][0] == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-sliding", "qwen2", "gemma3", "neox"])
def test_generation_with_a_cache_is_that_of_the_whole_model(name: str, beams: int) -> None:
    """Attention is gone from the first layer, of which transformers asks how many tokens the cache holds."""
    model = converted(name)
    masked = without(model, [*(f"a0.h{head}" for head in range(model.cfg.n_heads)), "a1.h0", "m0"])
    small, whole = tp.shrink(masked), tp.to_huggingface(masked)
    real = (torch.arange(PROMPTS.shape[1]) >= PADDING[:, None]).long()
    settings: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "num_beams": beams}
    settings |= {"output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    found, expected = (model.generate(PROMPTS, attention_mask=real, **settings) for model in (small, whole))
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert_same(ours, theirs, name)
    again = small.generate(PROMPTS, attention_mask=real, use_cache=False, **settings)
    assert torch.equal(found.sequences, again.sequences)
    if beams == 1:
        shapes = [(layer.keys.shape[1], layer.keys.shape[3]) for layer in found.past_key_values.layers]
        d_head = model.cfg.d_head
        assert shapes == [(1, 1), *((kv, d_head) for _, kv, _ in counts(small)[1:])]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "neox"])
def test_all_of_it_can_go(name: str) -> None:
    model = converted(name)
    for ablation in (tp.Zero(), tp.Mean(REFERENCE)):
        sites = tp.heads(model) + tp.mlps(model)
        masked = tp.Masked(model, tp.Circuit(sites, torch.zeros(len(sites), dtype=torch.bool)), ablation)
        small = tp.shrink(masked)
        assert counts(small) == [(0, 0, 0)] * model.cfg.n_layers
        assert_same(logits(small), masked(PROMPTS), name)


# ---- how many parameters


def size_of(name: str, small: Any) -> int:
    """Parameters of a shrunk model, from those of the whole one and what a head and a neuron are made of."""
    config, total = kept_model(name).config, kept_model(name).num_parameters()
    d, heads = config.hidden_size, config.num_attention_heads
    h, kv = getattr(config, "head_dim", None) or d // heads, getattr(config, "num_key_value_heads", heads)
    biases = name.startswith(("gpt2", "neox"))
    of_head = 2 * d * h + h * (biases or name in ("qwen2", "llama-biases"))
    of_kv = 2 * d * h + 2 * h * (biases or name in ("qwen2", "llama-biases"))
    width, of_neuron = kept_model(name).config.to_dict().get("n_inner") or 40, 2 * d + 1 if biases else 3 * d
    for n_heads, n_kv, neurons in counts(small):
        total -= of_head * (heads - n_heads) + of_kv * (kv - n_kv) + of_neuron * (width - neurons)
    return total + d * sum(len(layer.biases) for layer in small.sizes)


@pytest.mark.parametrize("ablation", [tp.Zero(), tp.Mean(REFERENCE)])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "llama-biases", "mistral", "qwen2"])
def test_the_number_of_parameters_is_that_of_what_is_left(name: str, ablation: Any) -> None:
    model = converted(name)
    # Of grouped queries, heads 0 and 1 share a key/value head, so do 2 and 3.
    removed = ["a0.h0", "a0.h1", "a1.h1", *(f"a1.h{head}" for head in range(2, model.cfg.n_heads)), "m1"]
    small = tp.shrink(tp.Masked(model, circuit_of(model, tp.heads(model) + tp.mlps(model), removed), ablation))
    width, grouped = model.cfg.d_mlp, name.startswith(("llama", "mistral", "qwen2"))
    heads = [model.cfg.n_heads - 2, 1]
    assert counts(small)[:2] == [(n, 1 if grouped else n, width if place == 0 else 0) for place, n in enumerate(heads)]
    assert small.num_parameters() == size_of(name, small)
    neurons = tp.shrink(tp.Masked(model, circuit_of(model, tp.neurons(model), ["m0.n3", "m0.n39", "m1.n0"]), tp.Zero()))
    assert [count[2] for count in counts(neurons)][:2] == [width - 2, width - 1]
    assert neurons.num_parameters() == size_of(name, neurons)


def test_what_is_left_are_the_same_numbers() -> None:
    small = tp.shrink(without(converted("gpt2"), ["a1.h1", "m2.n0", "m2.n7"]))
    before, after = (dict(model.named_parameters()) for model in (kept_model("gpt2"), small))
    heads = [*range(7), *range(14, 21)]
    places = [part * 21 + place for part in range(3) for place in heads]
    neurons = [place for place in range(50) if place not in (0, 7)]
    changed = {
        "transformer.h.1.attn.c_attn.weight": lambda whole: whole[:, places],
        "transformer.h.1.attn.c_attn.bias": lambda whole: whole[places],
        "transformer.h.1.attn.c_proj.weight": lambda whole: whole[heads],
        "transformer.h.2.mlp.c_fc.weight": lambda whole: whole[:, neurons],
        "transformer.h.2.mlp.c_fc.bias": lambda whole: whole[neurons],
        "transformer.h.2.mlp.c_proj.weight": lambda whole: whole[neurons],
    }
    attention, mlp = small.transformer.h[1].attn, small.transformer.h[2].mlp
    assert (attention.num_heads, attention.split_size, attention.c_attn.nf, attention.c_proj.nx) == (2, 14, 42, 14)
    assert (mlp.c_fc.nf, mlp.c_proj.nx) == (48, 48)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], changed.get(name, lambda whole: whole)(value)), name


@pytest.mark.parametrize(
    ("kept", "heads", "key_value_heads"),
    [
        (["a0.h0"], (0,), (0,)),
        (["a0.h3"], (3,), (1,)),
        (["a0.h1", "a0.h2"], (1, 2), (0, 1)),
        (["a0.h0", "a0.h1"], (0, 1), (0,)),
        (["a0.h1", "a0.h2", "a0.h3"], (0, 1, 2, 3), (0, 1)),  # head 0 stays beside head 1, without output weights
    ],
)
def test_key_value_heads_keep_as_many_query_heads_each(
    kept: list[str], heads: tuple[int, ...], key_value_heads: tuple[int, ...]
) -> None:
    model = converted("llama")
    kept = [*kept, *(f"a1.h{head}" for head in range(4))]
    masked = tp.Masked(model, tp.Circuit.from_names(tp.heads(model), kept), tp.Zero())
    small = tp.shrink(masked)
    if len(heads) == 4:
        assert type(small) is transformers.LlamaForCausalLM
        assert not small.model.layers[0].self_attn.o_proj.weight[:, :10].any()
    else:
        assert (small.sizes[0].heads, small.sizes[0].key_value_heads) == (heads, key_value_heads)
        assert small.model.layers[0].self_attn.k_proj.weight.shape == (10 * len(key_value_heads), 24)
    assert_same(logits(small), masked(PROMPTS), "llama")


# ---- of the stock class


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma"])
def test_layers_of_one_size_are_a_stock_model(name: str, tmp_path: Any) -> None:
    """Other heads in each layer, and as many; and as many neurons."""
    model = converted(name)
    removed = ["a0.h0", "a0.h3", "a1.h1", "a1.h2", "m0.n1", "m1.n39"]
    masked = without(model, removed)
    small = tp.shrink(masked)
    assert type(small) is type(kept_model(name))
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 2, 39)
    assert_same(logits(small), masked(PROMPTS), name)
    small.save_pretrained(tmp_path)
    assert not (tmp_path / "sizes.json").exists()
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert float((logits(read) - logits(small)).abs().max()) < 1e-12
    lens = tp.load(tmp_path, device="cpu", dtype=torch.float64)
    assert (lens.cfg.n_heads, lens.cfg.d_head, lens.cfg.d_mlp) == (2, model.cfg.d_head, 39)
    assert_same(lens(PROMPTS), masked(PROMPTS), name)


def test_fewer_neurons_alone_are_a_stock_model_in_every_family() -> None:
    for name in ("gpt2", "neox"):
        model = converted(name)
        removed = [f"m{layer}.n{layer + 1}" for layer in range(model.cfg.n_layers)]
        masked = tp.Masked(model, circuit_of(model, tp.neurons(model), removed), tp.Zero())
        small = tp.shrink(masked)
        assert type(small) is type(kept_model(name))
        assert_same(logits(small), masked(PROMPTS), name)
        removed = [f"a{layer}.h{layer}" for layer in range(model.cfg.n_layers)]
        small = tp.shrink(tp.Masked(model, circuit_of(model, tp.heads(model), removed), tp.Zero()))
        assert type(small).__name__ == f"Shrunk{type(kept_model(name)).__name__}", "no stock size of heads"


def test_a_number_of_heads_that_the_configuration_refuses_makes_no_stock_model() -> None:
    settings = LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 4}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).double().eval()
    randomise(theirs, seed=0)
    model = tp.from_huggingface(theirs, device="cpu")
    masked = tp.Masked(model, circuit_of(model, tp.heads(model), ["a0.h2", "a1.h5"]), tp.Zero())
    small = tp.shrink(masked)
    assert type(small).__name__ == "ShrunkLlamaForCausalLM", "24 numbers are not divided by 5 heads"
    assert_same(logits(small), masked(PROMPTS), "llama")


def test_nothing_to_remove_gives_the_model_itself() -> None:
    same = tp.shrink(converted("gpt2"))
    assert type(same) is transformers.GPT2LMHeadModel
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in kept_model("gpt2").state_dict().items())


# ---- encoders


@torch.no_grad()
def output_of(model: Any, tokens: tp.Tokens, name: str) -> Tensor:
    """What an encoder says of prompts; of choices each is the only one."""
    if "choices" not in name:
        return call_hf(model, tokens)[0]
    types = None if tokens.token_types is None else tokens.token_types[:, None]
    mask = None if tokens.attention_mask is None else tokens.attention_mask[:, None]
    return model(tokens.ids[:, None], attention_mask=mask, token_type_ids=types).logits


@pytest.mark.parametrize("padding", [None, "right"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_shrink(name: str, ablation: str, padding: str | None) -> None:
    model = fresh_encoder(name)
    sites = tp.heads(model) + tp.mlps(model)
    removed = [*(f"a0.h{head}" for head in range(4)), "a1.h1", "a1.h2", "m1"]
    chosen = tp.Zero() if ablation == "zero" else tp.Mean(encoder_prompts(name, seed=2))
    masked = tp.Masked(model, circuit_of(model, sites, removed), chosen)
    small = tp.shrink(masked)
    assert counts(small) == [(0, 0, 20), (2, 2, 0), (4, 4, 20)]
    attention = layers_of(small)[1].attention
    assert (attention.self.num_attention_heads, attention.self.all_head_size) == (2, 12)
    assert (attention.self.query.out_features, attention.output.dense.in_features) == (12, 12)
    whole, tokens = tp.to_huggingface(masked), encoder_prompts(name, padding=padding)
    found, expected = (output_of(model, tokens, name) for model in (small, whole))
    assert_same(found, expected, name)
    if name not in ("bert", "roberta"):  # of these the first output is the last state
        found = found if "words" in name else found[:, None]
        real = tokens.attention_mask.bool() if padding and "words" in name else slice(None)
        assert_same(found[real], masked(tokens)[real], name)
    lost = 6 * (4 * 24 * 6 + 3 * 6) + 20 * (2 * 24 + 1)
    assert small.num_parameters() == hf_model_of(name).num_parameters() - lost


def test_neurons_of_an_encoder_shrink() -> None:
    model = fresh_encoder("roberta classes")
    for removed, stock in ((["m0.n0", "m0.n1", "m2.n5"], False), (["m0.n0", "m1.n1", "m2.n5"], True)):
        masked = tp.Masked(model, circuit_of(model, tp.neurons(model), removed), tp.Zero())
        small = tp.shrink(masked)
        assert (type(small) is transformers.RobertaForSequenceClassification) == stock
        found = output_of(small, encoder_prompts("roberta classes"), "roberta classes")
        assert_same(found[:, None], masked(encoder_prompts("roberta classes")), "roberta")


# ---- as a model among others


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_all_that_is_left_can_be_trained(name: str) -> None:
    model = converted(name)
    removed = [*(f"a0.h{head}" for head in range(model.cfg.n_heads)), "a1.h0", "m1"]
    small = tp.shrink(without(model, removed, None)).train()
    small(PROMPTS, labels=PROMPTS).loss.backward()
    idle = [key for key, value in small.named_parameters() if value.grad is None or not value.grad.any()]
    norms = ("ln_1", "ln_2") if name == "gpt2" else ("input_layernorm", "post_attention_layernorm")
    assert all(f"0.{norms[0]}" in key or f"1.{norms[1]}" in key for key in idle), "norms of what is gone"


def test_shrinking_changes_nothing_else() -> None:
    model = converted("gpt2")
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    config = copy.deepcopy(model.huggingface_config.to_dict())
    small = tp.shrink(masked_of(model, "all", tp.Zero()))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.huggingface_config.to_dict() == config
    assert not small.training


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_embeddings_stay_tied(name: str) -> None:
    small = tp.shrink(masked_of(converted(name), "heads", tp.Zero()))
    assert small.lm_head.weight is small.get_input_embeddings().weight


def test_masked_weights_are_built_in() -> None:
    """A neuron all of whose output weights are masked is as good as masked itself."""
    model = converted("gpt2")
    sites = tp.weights(model, "blocks.1.mlp.W_out", unit="row")
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[[4, 6]] = False
    masked = tp.Masked(model, tp.Circuit(sites, kept), tp.Zero())
    small = tp.shrink(masked)
    assert small.sizes[1].neurons == tuple(place for place in range(50) if place not in (4, 6))
    assert layers_of(small)[1].mlp.c_fc.weight.shape == (21, 48)
    assert_same(logits(small), masked(PROMPTS), "gpt2")


@pytest.mark.parametrize("make", [tp.shrink, tp.to_huggingface])
def test_low_precision_leaves_the_angles_of_positions_as_they_are(make: Any) -> None:
    """As in a model that transformers reads in bfloat16."""
    made = make(masked_of(converted("llama", torch.bfloat16), "neurons", tp.Zero()))
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in made.buffers()} == {torch.float32}
    assert torch.get_default_dtype() is torch.float32


# ---- what is refused


def test_masks_that_no_smaller_model_stands_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted("gpt2")
    circuits = [tp.Circuit(sites, torch.arange(len(sites)) % 2 == 0) for sites in (tp.heads(model), tp.edges(model))]
    for circuit, options, reason in (
        (circuits[0], {"ablation": tp.Resample()}, "weights meets new tokens, for which resample"),
        (circuits[0], {"ablation": tp.Mean(REFERENCE, over="examples")}, "Mean.reference. over positions"),
        (circuits[0], {"ablation": tp.Zero(), "norm": "frozen"}, "norm='recomputed'"),
        (circuits[1], {"ablation": tp.Zero()}, "these sites hold edges.*Mask heads, MLPs"),
    ):
        with pytest.raises(ValueError, match=reason):
            tp.shrink(tp.Masked(model, circuit, **options))
    monkeypatch.delitem(FAMILIES, "gpt2")
    with pytest.raises(ValueError, match=r"gpt2 cannot be shrunk.*to_huggingface"):
        tp.shrink(tp.Masked(model, circuits[0], tp.Zero()))
