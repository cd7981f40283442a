"""The tokens of a prompt, coloured by a number for each position."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.placing import spans_of
from tlprune.scores import Scores
from tlprune.spans import Spanned, every_span, places
from tlprune.task import Batch, Tokens
from tlprune.views.prompt import Prompt, circuitsvis, pieces_of, tokens_of


def position_importance(scores: Scores, batch: Batch) -> Float[Tensor, "example pos"]:
    """How much scores by span say of each position: ``sum_e |s(e@span)|`` over sites ``e`` at the position's span.

    Positions of one span have the same number, the span's; padding has 0. Under :func:`tlprune.tasks.covered` every
    position is in a named span.

    Args:
        scores: by span, in their own unit, such as those of ``tp.EAP(spans=...)`` (nats or logits).
        batch: prompts of the same task, whose spans are known.

    Raises:
        ValueError: the scores do not differ by span, or the batch does not know their spans.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> sites = tp.edges(planted.model, spans=planted.task)
        >>> values = torch.tensor([float(sites.name(index) == "m0->logits@end") for index in range(len(sites))])
        >>> position_importance(Scores(sites, values), planted.task.test.rows(torch.tensor([0]))).tolist()
        [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    names = scores.sites.spans
    if not names:
        raise ValueError(
            "The importance of positions needs scores by span but these do not differ by span. Score with "
            "tp.EAP(spans=task.span_names)."
        )
    totals = torch.zeros(len(every_span(names)))
    for kind, part in scores.sites.parts.items():
        if isinstance(group := scores.sites.group(kind), Spanned):
            totals += group.table(scores.values[part].detach().float().cpu()).abs().sum(-1)
    numbers = spans_of(batch, names)
    assert numbers is not None
    mask = batch.clean.attention_mask
    found = totals[places(names, numbers.cpu())]
    return found if mask is None else found * mask.cpu()


def token_view(model: Any, prompt: Prompt, values: Float[Tensor, "_"]) -> Any:
    """The tokens of a prompt coloured by numbers, as a view of CircuitsVis, which a notebook shows by itself.

    Its page loads CircuitsVis' program from a server (unpkg.com); without a network a notebook takes the copy in the
    package.

    Args:
        model: whose tokenizer tells the pieces of text.
        prompt: one prompt.
        values: a number for each of its positions, those of padding left out or not, such as a row of
            :func:`position_importance`.

    Raises:
        ModuleNotFoundError: circuitsvis is not installed.
        ValueError: there is not one number per position.
    """
    shown = circuitsvis("tokens")
    pieces = pieces_of(model, tokens_of(model, prompt))
    mask = prompt.attention_mask if isinstance(prompt, Tokens) else None
    if mask is not None and len(values) == mask.shape[1]:
        values = values[mask[0].to(values.device) > 0]
    if len(values) != len(pieces):
        raise ValueError(
            f"A view of tokens needs a number for each of {len(pieces)} positions but got {len(values)}. Take them of "
            "the same prompt."
        )
    return shown.colored_tokens(pieces, values.detach().cpu())
