"""On a TransformerLens without HookedTransformer everything runs on bridges, and what cannot says so in a sentence."""

import pytest
from hooked import NEEDS_HOOKED_TRANSFORMER

import tlprune as tp
from tlprune.models.transformer_lens import build, has_hooked_transformer

without = pytest.mark.skipif(has_hooked_transformer(), reason="this TransformerLens has HookedTransformer")


@without
def test_a_hooked_transformer_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"no longer has. Use tp\.load.*or install transformer-lens 3\.9"):
        build(n_layers=1, d_model=8, n_ctx=4, d_head=4, attn_only=True, d_vocab=5)


@without
@pytest.mark.parametrize("name", ["testbed", "planted"])
def test_load_gives_a_bridge(name: str) -> None:
    assert type(tp.load(name, device="cpu")).__name__ == "TransformerBridge"


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("name", ["testbed", "planted"])
def test_load_gives_a_hooked_transformer_where_there_is_one(name: str) -> None:
    assert type(tp.load(name, device="cpu")).__name__ == "HookedTransformer"


def test_the_testbed_is_one_model_on_every_line() -> None:
    """The fingerprint that circuits name, of whatever kind of model this TransformerLens gives."""
    circuit = tp.EdgePruning(edges=20, steps=1).find(tp.load("testbed"), tp.tasks.ioi(tp.load("testbed")))
    assert circuit.provenance["model"]["weights"] == "6c8b550b1a7ca0d3"
