"""A tokenizer from a lone sentencepiece file (``*.model``), as checkpoints of the Llama kind come with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPACE = "▁"
# Spaces, line ends, and characters that only some normalisations change.
PROBES = ("Once upon a time", " a  b ", "x\ny", "ﬁ①Ａé\t“”", "")


def sentencepiece_tokenizer(path: Path) -> Any | None:
    """A transformers tokenizer with the file's own tokens, or ``None`` where the two would not agree.

    The pieces are merged in the order of their scores. Whether spaces are joined and one is put in front is found by
    trying; files that change characters before they cut (NFKC) are not followed.
    """
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(path))
    tokenizer = _wrapped(pieces)
    same = (tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text) for text in PROBES)
    return tokenizer if all(same) else None


def _wrapped(pieces: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
    unknown, bytewise = names[pieces.unk_id()], any(map(pieces.is_byte, range(len(names))))
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = list(_merges(pieces, vocabulary))
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytewise)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = _normaliser(pieces), _decoder()
    special = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id()}
    named = {key: names[index] for key, index in special.items() if index >= 0}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, **named)


def _merges(pieces: Any, vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to put a piece together from two others, the best pieces first."""
    usual = [name for name, index in vocabulary.items() if not (pieces.is_control(index) or pieces.is_byte(index))]
    for name in sorted(usual, key=lambda name: -pieces.get_score(vocabulary[name])):
        for cut in range(1, len(name)):
            if name[:cut] in vocabulary and name[cut:] in vocabulary:
                yield name[:cut], name[cut:]


def _normaliser(pieces: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if pieces.encode(" a  a ") == pieces.encode("a a"):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if pieces.encode("a", out_type=str)[0].startswith(SPACE):
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder() -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)
