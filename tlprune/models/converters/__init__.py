"""Which Hugging Face architectures can be read and written: one entry for each."""

from __future__ import annotations

from tlprune.models.converters.decoders import DECODERS
from tlprune.models.converters.layout import Converter

# From the name of the transformers class to what converts it. Encoders go beside the decoders, in a table of their own.
CONVERTERS: dict[str, Converter] = {**DECODERS}
