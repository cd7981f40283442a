"""BERT-like encoders with a head: classes, one number, choices, a pooled vector or masked words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tlprune.backends.calls import mean_state

Kind = Literal["classification", "multi_label", "regression", "multiple_choice", "pooling", "masked_lm"]
Pooling = Literal["first", "mean"]


def _hooked_encoder() -> Any:
    """TransformerLens' encoder; any module where there is none (4.0 and later), so that this file can be read."""
    try:
        from transformer_lens import HookedEncoder
    except ImportError:
        return nn.Module
    return HookedEncoder


@dataclass(frozen=True)
class Head:
    """What an encoder says of its last states.

    Attributes:
        kind: ``"classification"``: one of some classes; ``"multi_label"``: each class or not; ``"regression"``:
            numbers; ``"multiple_choice"``: one score per row, a row being a question with one of its choices;
            ``"pooling"``: the pooled vector itself; ``"masked_lm"``: the vocabulary at each position.
        labels: classes or numbers.
        pooling: what of the states a head reads: ``"first"``: ``tanh(W s_0 + b)`` of the first token's state;
            ``"mean"``: the mean state over real tokens.

    Raises:
        ValueError: no such kind, or choices that are not scored by one number.

    Example:
        >>> Head("classification", labels=3).predicts, Head("masked_lm").predicts
        ('prompts', 'tokens')
    """

    kind: Kind
    labels: int = 1
    pooling: Pooling = "first"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"A head is one of {', '.join(get_args(Kind))} but is {self.kind!r}. Choose one of these.")
        if self.kind == "multiple_choice" and self.labels != 1:
            raise ValueError(f"A choice needs one score but the head has {self.labels} labels. Leave labels out.")

    @property
    def predicts(self) -> Literal["tokens", "prompts"]:
        """Whether logits are over the vocabulary at each position, or one row per prompt."""
        return "tokens" if self.kind == "masked_lm" else "prompts"

    @property
    def classifies(self) -> bool:
        """Whether pooled vectors go through a linear map."""
        return self.kind not in ("masked_lm", "pooling")

    def loss(self, logits: Float[Tensor, "*rows label"], labels: Shaped[Tensor, "..."]) -> Float[Tensor, ""]:
        """What training of the head lowers: cross-entropy in nats, of several labels binary, or the mean squared error.

        Args:
            logits: of the model; of choices ``(example, choice)``.
            labels: class indices, one per row, -100 where there is none; else numbers in the shape of the logits.

        Raises:
            ValueError: a pooled vector has no loss.

        Example:
            >>> Head("regression").loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 3.0]))
            tensor(0.5000)
        """
        if self.kind == "pooling":
            raise ValueError("A pooled vector has no loss of its own. Put a loss of yours on it.")
        if self.kind == "regression":
            return F.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if self.kind == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class HeadedEncoder(_hooked_encoder()):
    """A HookedEncoder with one head and no part that the head does not use.

    It has TransformerLens' hooks and parameter names; ``pooler`` and ``classifier`` (``W``, ``b``) are of heads that
    pool, ``mlm_head`` and ``unembed`` of masked words.

    Args:
        cfg: a HookedTransformerConfig.
        head: what it says of its states.
        tokenizer: for strings.
        padding_id: token that takes no position, as in RoBERTa: positions are then counted from ``padding_id + 1`` over
            all other tokens. ``None``: positions are places, as in BERT.
        n_positions: rows of the position table; by default ``n_ctx``.

    Raises:
        ValueError: this TransformerLens has no HookedEncoder (4.0 and later).
    """

    cfg: Any
    blocks: Any
    embed: Any
    pooler: Any
    mlm_head: Any
    unembed: Any
    nsp_head: Any
    encoder_output: Any

    def __init__(
        self,
        cfg: Any,
        head: Head,
        *,
        tokenizer: Any = None,
        padding_id: int | None = None,
        n_positions: int | None = None,
    ) -> None:
        if _hooked_encoder() is nn.Module:
            raise ValueError(
                "An encoder with a head needs HookedEncoder, which this TransformerLens no longer has. Install "
                "transformer-lens 3.9: pip install 'transformer-lens>=3.9,<4'."
            )
        super().__init__(cfg, tokenizer, move_to_device=False)
        self.head = head
        if padding_id is not None:
            self.embed = CountedEmbed(self.embed, padding_id, n_positions or cfg.n_ctx)
        del self.nsp_head
        if head.kind != "masked_lm":
            del self.mlm_head, self.unembed
        if head.kind == "masked_lm" or head.pooling == "mean":
            del self.pooler
        if head.classifies:
            self.classifier = Linear(cfg.d_model, head.labels, cfg.dtype)
        self.to(cfg.device, print_details=False)
        self.setup()

    @property
    def predicts(self) -> Literal["tokens", "prompts"]:
        """As of :class:`Head`."""
        return self.head.predicts

    def forward(
        self,
        input: Any,
        return_type: Literal["logits", "states", "predictions"] | None = "logits",
        token_type_ids: Int[Tensor, "*rows pos"] | None = None,
        one_zero_attention_mask: Int[Tensor, "*rows pos"] | None = None,
    ) -> Any:
        """What the head says of prompts: logits, or pooled vectors.

        Args:
            input: strings, pairs of strings, or token ids ``(example, pos)``; for choices also
                ``(example, choice, pos)``, which gives scores ``(example, choice)``.
            return_type: ``"states"``: the last states ``(example, pos, d_model)`` instead; ``"predictions"``: the words
                that a head for masked words puts in.
            token_type_ids: 0 for the first sentence, 1 for the second.
            one_zero_attention_mask: 1 for real tokens, 0 for padding; all ones when ``None``.
        """
        if return_type == "predictions":
            return super().forward(input, return_type, token_type_ids, one_zero_attention_mask)
        if not isinstance(input, Tensor):
            input, types, mask = self.to_tokens(input)
            token_type_ids = types if token_type_ids is None else token_type_ids
            one_zero_attention_mask = mask if one_zero_attention_mask is None else one_zero_attention_mask
        shape = input.shape[:-1]
        ids, types, mask = map(_as_rows, (input, token_type_ids, one_zero_attention_mask))
        states = self.encoder_output(ids, types, mask)
        if return_type != "logits":
            return states.unflatten(0, shape) if return_type == "states" else None
        logits = self.logits_of(states, mask)
        return logits.view(shape) if self.head.kind == "multiple_choice" and len(shape) > 1 else logits

    def logits_of(
        self, states: Float[Tensor, "example read d_model"], mask: Int[Tensor, "example pos"] | None
    ) -> Float[Tensor, "example *rest"]:
        """What the head says of last states: all of them where it pools, any of them where it names words."""
        if self.head.kind == "masked_lm":
            return self.unembed(self.mlm_head(states))
        pooled = self.pooler(states) if self.head.pooling == "first" else mean_state(states, mask)
        return self.classifier(pooled) if self.head.classifies else pooled

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str = "right") -> None:
        """Take a tokenizer for strings."""
        tokenizer.padding_side = default_padding_side
        self.tokenizer = tokenizer

    def to_tokens(self, input: Any, move_to_device: bool = True, truncate: bool = True) -> Any:
        """Ids, token types (0 where the tokenizer has none) and attention mask of strings, or of pairs of strings."""
        if self.tokenizer is None:
            raise ValueError("Strings need a tokenizer but this model has none. Give it one, or pass token ids.")
        most = self.cfg.n_ctx if truncate else None
        found = self.tokenizer(input, return_tensors="pt", padding=True, truncation=truncate, max_length=most)
        types = found.get("token_type_ids", torch.zeros_like(found["input_ids"]))
        device = self.cfg.device if move_to_device else "cpu"
        return tuple(part.to(device) for part in (found["input_ids"], types, found["attention_mask"]))


class Linear(nn.Module):
    """``x W + b``, in TransformerLens' layout."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(inputs, outputs, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(outputs, dtype=dtype))

    def forward(self, value: Float[Tensor, "example d_model"]) -> Float[Tensor, "example label"]:
        return value @ self.W + self.b


class CountedEmbed(nn.Module):
    """An embedding whose positions count the tokens that are no padding, from ``padding_id + 1`` on.

    Args:
        embed: TransformerLens' own, whose parts and hooks it takes.
        padding_id: the padding token, which all its places share as position too.
        n_positions: rows of the position table.

    Source: fairseq's ``make_positions``, as RoBERTa uses it.
    """

    embed: Any
    pos_embed: Any
    token_type_embed: Any
    ln: Any
    hook_embed: Any
    hook_pos_embed: Any
    hook_token_type_embed: Any

    def __init__(self, embed: Any, padding_id: int, n_positions: int) -> None:
        super().__init__()
        self.padding_id = padding_id
        for name, part in embed.named_children():
            self.add_module(name, part)
        table = self.pos_embed.W_pos
        self.pos_embed.W_pos = nn.Parameter(table.new_zeros(n_positions, table.shape[1]))

    def forward(
        self, ids: Int[Tensor, "example pos"], token_types: Int[Tensor, "example pos"] | None = None
    ) -> Float[Tensor, "example pos d_model"]:
        real = ids != self.padding_id
        positions = real.cumsum(1) * real + self.padding_id
        types = torch.zeros_like(ids) if token_types is None else token_types
        words, places = self.hook_embed(self.embed(ids)), self.hook_pos_embed(self.pos_embed.W_pos[positions])
        return self.ln(words + places + self.hook_token_type_embed(self.token_type_embed(types)))


def _as_rows(part: Tensor | None) -> Any:
    return None if part is None else part.flatten(0, -2)
