"""What the compiler of Tracr makes is taken over exactly; these tests need it and jax, see the extra ``tracr``."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.tracr.compiled import START, Compiled
from tlprune.models.tracr.compiler import KNOWN, PAD, compiled_program, known_program, tracr_modules
from tlprune.models.tracr.program import SHIPPED, WEIGHTS, Tracr, tracr

pytest.importorskip("tracr", reason="Tracr is not installed: pip install 'tlprune[tracr]'")


@cache
def assembled(name: str) -> Any:
    compiling, (rasp, lib) = tracr_modules()
    known = KNOWN[name]
    return compiling.compile_rasp_to_model(
        known.write(rasp, lib), set(known.vocabulary), known.longest, compiler_bos=START, compiler_pad=PAD
    )


@cache
def built(name: str) -> Tracr:
    return tracr(name)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_converted_model_equals_the_compiled_one_on_every_input(name: str) -> None:
    one, theirs = built(name), assembled(name)
    ids = one.task.test.clean.ids
    logits, out = one.model(ids).detach(), theirs.forward(theirs.params, ids.numpy())
    streams, unembedded = (
        torch.tensor(part.tolist()) for part in (out.transformer_output.output, out.unembedded_output)
    )
    torch.testing.assert_close(logits, streams @ one.program.weights["unembed.W_U"], atol=1e-5, rtol=0)
    own = logits[..., 0] if one.program.outputs is None else logits.argmax(-1)
    torch.testing.assert_close(own[:, 1:], unembedded[:, 1:], atol=1e-5, rtol=0, check_dtype=False)
    for sequence in one.program.sequences[::13]:  # as a user of Tracr calls it, one by one
        assert one([sequence])[0] == pytest.approx(theirs.apply([START, *sequence]).decoded[1:], abs=1e-5)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_model_does_what_the_program_means_on_every_input(name: str) -> None:
    one = built(name)
    _, (rasp, lib) = tracr_modules()
    program = KNOWN[name].write(rasp, lib)
    meant = [program(list(sequence)) for sequence in one.program.sequences]
    if one.program.outputs is None:
        meant = [pytest.approx([float(number) for number in row], abs=1e-5) for row in meant]
    assert one(one.program.sequences) == meant
    assert one.solves(one.behavioural) and one.is_least(one.behavioural)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_what_the_compiler_makes(name: str) -> None:
    shipped, anew = Compiled.read(WEIGHTS / name), known_program(name)
    assert all(torch.equal(shipped.weights[part], anew.weights[part]) for part in anew.weights)
    assert torch.equal(shipped.meaning, anew.meaning)
    for fact in ("shape", "inputs", "outputs", "vocabulary", "length", "explanation"):
        assert getattr(shipped, fact) == getattr(anew, fact)


def test_a_program_of_ones_own_is_compiled_causal_too() -> None:
    _, (rasp, lib) = tracr_modules()
    one = tracr(lib.make_frac_prevs(rasp.tokens == "a"), {"a", "b"}, length=3, name="share of a", causal=True)
    assert one.model.cfg.attention_dir == "causal" and one.model.cfg.model_name == "tracr-share of a"
    assert one(["aba"])[0] == pytest.approx([1, 1 / 2, 2 / 3], abs=1e-5)
    changed = one.model(one.program.encode(["abb"]))[0, :3] - one.model(one.program.encode(["aba"]))[0, :3]
    assert not changed.any()  # the last token is not seen before


def test_places_for_which_a_program_gives_nothing_are_left_out() -> None:
    _, (rasp, lib) = tracr_modules()
    one = tracr(lib.shift_by(1, rasp.tokens), {"a", "b"}, length=3, name="shift")
    batch = one.task.test
    assert (batch.answers[:, 0] == -100).all() and (batch.foils[:, 0] == -100).all()
    assert (batch.answers[:, 1:] >= 0).all() and (batch.foils[:, 1:] >= 0).all()
    # What an edge does at the first place is no reason to keep it: nothing is asked there.
    nothing = one.behaviour.counts
    assert not nothing[:, 0].any() and nothing[:, 1:].all()
    assert tp.evaluate(one.model, one.behavioural, one.task, ablation=tp.Zero())["circuit"].means()["accuracy"] == 1


def test_what_tracr_cannot_compile_is_said_in_its_words() -> None:
    _, (rasp, _) = tracr_modules()
    program = rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ), rasp.numerical(rasp.tokens))
    with pytest.raises(ValueError, match="Tracr compiles a part of RASP, but not the program 'it'"):
        compiled_program(program, {1, 2}, length=2, longest=2, name="it")


def test_biases_of_the_model_are_zero() -> None:
    weights = backend_of(built("sort").model).parameters()
    assert all(not value.any() for name, value in weights.items() if ".b_" in name)
