"""A soft prompt: its vectors, what of them is trained, how it was made, and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.prompting import attached_vectors
from tlprune.files import check_format, read_tensors, write_tensors
from tlprune.prompts.making import drawn, spelt
from tlprune.tasks.tokenising import prompt_place

Place = Literal["start", "end"]
FILE, VERSION = "prompt.safetensors", 1


@dataclass(frozen=True, eq=False)
class Prompt:
    """Vectors that a model reads in place of the embeddings of a task's prompt tokens.

    A model that embeds ``V`` tokens reads the id ``V + i`` as the vector ``i`` while the prompt is attached. What a
    vector replaces is what the embedding gives, before positions and token types are added; it is rounded to the
    model's precision on the way. The model is not changed.

    Attributes:
        vectors: one for each prompt token.
        place: ``"start"``: in front of all tokens, as in encoders, which are read at the first; ``"end"``: behind the
            text, as in decoders, which are read at the last.
        frozen: how many of the first vectors are never trained: 1 in encoders, whose first is the embedding of [MASK].
        record: how the prompt was made, as plain data.

    Raises:
        ValueError: there is no vector, more are frozen than there are, or there is no such place.

    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (EMNLP 2021); Wang et al.,
        "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022), section 2.1.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed")
        >>> prompt = tp.Prompt.random(model, 4, seed=1)
        >>> ids = torch.tensor([[5, 6, 7, *range(model.cfg.d_vocab, model.cfg.d_vocab + 4)]])
        >>> with prompt.attached(model):
        ...     logits = model(ids)
        >>> prompt, logits.shape == (1, 7, model.cfg.d_vocab)
        (Prompt(4 vectors of 128 at the end), True)
    """

    vectors: Float[Tensor, "prompt d_model"]
    place: Place = "end"
    frozen: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise ValueError(f"place must be one of {', '.join(get_args(Place))} but is {self.place!r}. Choose one.")
        if not len(self.vectors) or not 0 <= self.frozen <= len(self.vectors):
            raise ValueError(
                f"A prompt needs at least one vector, and to freeze at most all, but has {len(self.vectors)} and "
                f"freezes {self.frozen}. Give vectors, or a smaller number."
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        kept = f", {self.frozen} frozen" if self.frozen else ""
        return f"Prompt({len(self)} vectors of {self.vectors.shape[1]} at the {self.place}{kept})"

    @staticmethod
    def random(model: Any, length: int, *, seed: int = 0) -> Prompt:
        """Vectors drawn from a normal distribution with standard deviation 1/30; an encoder's first is that of [MASK].

        Args:
            model: the model that is to read it; an encoder must carry a tokenizer that has [MASK].
            length: vectors in all.
            seed: of the draw.

        Raises:
            ValueError: the length is below 1, or an encoder's tokenizer has no [MASK].
        """
        place = prompt_place(model)
        vectors, frozen = drawn(model, length, seed=seed)
        return Prompt(vectors, place, frozen, {"made": "random", "seed": seed, "length": length})

    @staticmethod
    def written(model: Any, text: str) -> Prompt:
        """A prompt that a person wrote: the embeddings of its tokens, in encoders behind that of [MASK].

        Where words stand on both sides of what is read, give the task a template instead
        (:func:`tlprune.tasks.prompted`).

        Args:
            model: the model that is to read it; it must carry its tokenizer.
            text: the words; a space at the start counts where the tokenizer tells.

        Raises:
            ValueError: the text has no tokens or unknown ones, or an encoder's tokenizer has no [MASK].

        Example:
            >>> import tlprune as tp
            >>> len(Prompt.written(tp.load("testbed"), " is kind"))
            2
        """
        vectors, frozen = spelt(model, text)
        return Prompt(vectors, prompt_place(model), frozen, {"made": "written", "text": text})

    @contextmanager
    def attached(self, model: Any) -> Iterator[Any]:
        """The model reads prompt tokens as these vectors until the block ends, whoever runs it.

        Gradients reach ``vectors``, where these collect them.

        Raises:
            ValueError: the vectors are of another width than the model, or a prompt is attached already.
        """
        with attached_vectors(backend_of(model).embedding, self.vectors, name=lambda: self.hash):
            yield model

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of vectors, place and number of frozen ones."""
        about = f"{self.place} {self.frozen} {tuple(self.vectors.shape)}"
        values = self.vectors.detach().cpu().to(torch.float32).contiguous()
        return hashlib.sha256(about.encode() + values.numpy().tobytes()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write the prompt into a folder, which is made where there is none, as ``prompt.safetensors``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        about = {"place": self.place, "frozen": self.frozen, "record": dict(self.record)}
        data = {"format": "tlprune-prompt", "version": VERSION, **about}
        write_tensors(Path(folder) / FILE, {"vectors": self.vectors}, data)

    @staticmethod
    def load(folder: str | Path) -> Prompt:
        """The prompt that :meth:`save` wrote.

        Raises:
            ValueError: there is none, or it is not whole.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> prompt = Prompt(torch.ones(3, 2), "start", 1, {"made": "by hand"})
            >>> with TemporaryDirectory() as folder:
            ...     prompt.save(folder)
            ...     again = Prompt.load(folder)
            >>> again, again.hash == prompt.hash, again.record
            (Prompt(3 vectors of 2 at the start, 1 frozen), True, {'made': 'by hand'})
        """
        path = Path(folder) / FILE
        tensors, data = read_tensors(path, "prompt")
        check_format(data, path, "prompt", VERSION)
        return Prompt(tensors["vectors"], data["place"], data["frozen"], data["record"])
