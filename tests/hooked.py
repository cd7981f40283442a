"""Whether the installed TransformerLens has HookedTransformer (3.x), and the mark for tests that need it."""

import pytest

from tlprune.models.transformer_lens import hooked_transformer

try:
    hooked_transformer()
except ValueError:
    HAS_HOOKED_TRANSFORMER = False
else:
    HAS_HOOKED_TRANSFORMER = True

NEEDS_HOOKED_TRANSFORMER = pytest.mark.skipif(
    not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer"
)
