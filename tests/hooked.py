"""Whether the installed TransformerLens has HookedTransformer (3.x), and the mark for tests that need it."""

import pytest

from tlprune.models.transformer_lens import has_hooked_transformer

NEEDS_HOOKED_TRANSFORMER = pytest.mark.skipif(
    not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"
)
