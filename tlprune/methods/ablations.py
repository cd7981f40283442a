"""Which ablation a method uses, with the reference prompts that it takes where none are given."""

from __future__ import annotations

from dataclasses import replace

from tlprune.masking.ablation import Ablation, Resample
from tlprune.masking.means import Mean
from tlprune.task import MAIN, Discovery


def ablation_for(discovery: Discovery, ablation: Ablation | None = None, *, on: str = MAIN) -> Ablation:
    """The ablation of a discovery: the given one, by default :class:`~tlprune.Resample`.

    ``Mean()`` without reference prompts goes over the task's training prompts, corrupted. Its provenance has their
    fingerprint and number, and ``Mean(task.discovery.train().corrupt)`` is the same again.

    Args:
        discovery: what the method may see of the task.
        ablation: what the user asked for.
        on: the stream whose prompts are taken.

    Raises:
        ValueError: the prompts are padded and the mean is to be one per position.

    Example:
        >>> import tlprune as tp
        >>> ablation_for(tp.planted("copy").task.discovery, tp.Mean()).as_dict()["prompts"]
        96
    """
    if isinstance(ablation, Mean) and ablation.reference is None:
        return replace(ablation, reference=discovery.train(on).corrupt)
    return ablation or Resample()
