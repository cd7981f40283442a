"""From a program in RASP to tensors, by the compiler of Tracr; the only module that needs it, and jax."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlprune.models.tracr.compiled import MEANING, START, UNDEFINED, Compiled, Shape, Value

PAD = "PAD"
PARTS = {"query": "Q", "key": "K", "value": "V"}


@dataclass(frozen=True)
class Known:
    """A program by name.

    Attributes:
        write: the program, from the modules ``rasp`` and ``lib`` of Tracr.
        vocabulary: what its inputs are made of.
        length: of its inputs.
        explanation: what it computes, and how.
        longest: the longest input that the model takes. Were it :attr:`length`, an MLP that computes the length would
            be right without being told anything: where nothing comes in, it gives the largest length.
    """

    write: Callable[[Any, Any], Any]
    vocabulary: tuple[Value, ...]
    length: int
    explanation: str
    longest: int = 5


KNOWN: dict[str, Known] = {
    "reverse": Known(
        lambda rasp, lib: lib.make_reverse(rasp.tokens),
        (1, 2, 3),
        3,
        "a0.h0 attends to all alike, so that m0 tells the length; m1 takes the position from it and m2 takes one more; "
        "a3.h0 looks there and copies the token",
    ),
    "xproportion": Known(
        lambda rasp, lib: lib.make_frac_prevs(rasp.tokens == "x"),
        ("w", "x", "y", "z"),
        4,
        "m0 tells which tokens are x, and a1.h0 averages over the positions up to its own",
    ),
    "sort": Known(
        lambda rasp, lib: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=5, min_key=1),
        (1, 2, 3),
        3,
        "m0 breaks ties by position, a1.h0 and m1 count the smaller ones, which is the place to go to, and a2.h0 "
        "brings each token to its place",
    ),
    "hist": Known(
        lambda rasp, lib: lib.make_hist(),
        ("a", "b", "c"),
        3,
        "a0.h0 attends to the same token, so that m0 tells how often it occurs",
    ),
    "shuffle-dyck": Known(
        lambda rasp, lib: lib.make_shuffle_dyck(["()"]),
        ("(", ")"),
        4,
        "whether parentheses are balanced: heads average over opening and over closing ones, an MLP compares, and "
        "further heads look for a negative balance anywhere and for a zero at the end",
    ),
}


def compiled_program(
    program: Any,
    vocabulary: Collection[Value],
    *,
    length: int,
    longest: int,
    name: str,
    explanation: str = "",
    causal: bool = False,
) -> Compiled:
    """Compile a program in RASP and take its tensors over.

    Args:
        program: an expression of ``tracr.rasp.rasp``.
        vocabulary: the values that its inputs are made of.
        length: of the inputs that the task is made of.
        longest: the longest input that the model takes.
        name: of the program.
        explanation: what it computes.
        causal: whether positions attend to those before them alone.

    Raises:
        ValueError: Tracr is not installed, or cannot compile this program.
    """
    compiling, _ = tracr_modules()
    try:
        assembled = compiling.compile_rasp_to_model(
            program, set(vocabulary), longest, causal=causal, compiler_bos=START, compiler_pad=PAD
        )
    except NotImplementedError as error:
        raise ValueError(
            f"Tracr compiles a part of RASP, but not the program {name!r}: {error} Write it with what Tracr's "
            "compiler supports."
        ) from None
    outputs = getattr(assembled.output_encoder, "encoding_map", None)
    one = Compiled(
        name=name,
        explanation=explanation,
        shape=_shape(assembled, outputs),
        inputs=_values(assembled.input_encoder.encoding_map),
        outputs=None if outputs is None else _values(outputs),
        vocabulary=tuple(sorted(vocabulary, key=lambda value: (str(type(value)), value))),
        length=length,
        weights=_weights(assembled),
        meaning=torch.zeros(0, length),
    )
    return _with_meaning(one, program, outputs)


def known_program(name: str) -> Compiled:
    """Compile a program of :data:`KNOWN`."""
    known = KNOWN[name]
    _, (rasp, lib) = tracr_modules()
    return compiled_program(
        known.write(rasp, lib),
        known.vocabulary,
        length=known.length,
        longest=known.longest,
        name=name,
        explanation=known.explanation,
    )


def tracr_modules() -> tuple[Any, tuple[Any, Any]]:
    """Tracr's compiler, and its language with the programs in it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from tracr.compiler import compiling, lib  # pyright: ignore
        from tracr.rasp import rasp  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"Compiling a program needs Tracr and jax, but {error.name} is not installed. Install them with "
            "pip install 'tlprune[tracr]', or take a program whose weights are in the package: reverse, xproportion."
        ) from None
    return compiling, (rasp, lib)


def _values(ids: Mapping[Value, int]) -> tuple[Value, ...]:
    return tuple(sorted(ids, key=lambda value: ids[value]))


def _shape(assembled: Any, outputs: Mapping[Value, int] | None) -> Shape:
    config, embedding = assembled.model_config, assembled.params["token_embed"]["embeddings"]
    return Shape(
        n_layers=config.num_layers,
        n_heads=config.num_heads,
        d_model=embedding.shape[1],
        d_head=config.key_size,
        d_mlp=config.mlp_hidden_size,
        d_vocab=embedding.shape[0],
        d_vocab_out=1 if outputs is None else len(outputs),
        n_ctx=assembled.params["pos_embed"]["embeddings"].shape[0],
        causal=config.causal,
    )


def _weights(assembled: Any) -> dict[str, Tensor]:
    """Parameters in TransformerLens' names; every bias of a compiled model is 0."""
    params, heads = assembled.params, assembled.model_config.num_heads
    found = {"embed.W_E": params["token_embed"]["embeddings"], "pos_embed.W_pos": params["pos_embed"]["embeddings"]}
    found["unembed.W_U"] = _unembedding(assembled)
    for layer in range(assembled.model_config.num_layers):
        old, new = f"transformer/layer_{layer}/", f"blocks.{layer}."
        for part, letter in PARTS.items():
            joined = np.asarray(params[f"{old}attn/{part}"]["w"])
            found[f"{new}attn.W_{letter}"] = joined.reshape(len(joined), heads, -1).swapaxes(0, 1)
        joined = np.asarray(params[f"{old}attn/linear"]["w"])
        found[f"{new}attn.W_O"] = joined.reshape(heads, -1, joined.shape[1])
        found[f"{new}mlp.W_in"] = params[f"{old}mlp/linear_1"]["w"]
        found[f"{new}mlp.W_out"] = params[f"{old}mlp/linear_2"]["w"]
    assert not any(np.any(module["b"]) for module in params.values() if "b" in module)
    return {name: torch.tensor(np.asarray(value, dtype=np.float32)) for name, value in found.items()}


def _unembedding(assembled: Any) -> Any:
    """The compiled model unembeds by a function: what it makes of the stream is linear, so unit vectors tell it."""
    import haiku  # pyright: ignore[reportMissingImports]

    size = len(assembled.residual_labels)

    def read(stream: Any) -> Any:
        return assembled.get_compiled_model().unembed(stream, use_unembed_argmax=False)

    apply = haiku.without_apply_rng(haiku.transform(read)).apply
    return np.asarray(apply(assembled.params, np.eye(size, dtype=np.float32))).reshape(size, -1)


def _with_meaning(one: Compiled, program: Any, outputs: Mapping[Value, int] | None) -> Compiled:
    """What Tracr's interpreter of RASP gives on every input."""
    given = [program(list(sequence)) for sequence in one.sequences]
    if outputs is None:
        meaning = torch.tensor(given, dtype=torch.float32)
    else:
        meaning = torch.tensor([[outputs.get(value, UNDEFINED) for value in values] for values in given])
    return Compiled(**{**vars(one), MEANING: meaning})
