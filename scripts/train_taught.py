"""Train the model with a known circuit that the package carries, by interchange interventions on its edges.

Run from the repository root:

    python scripts/train_taught.py --seed 0 --steps 4000 --out tlprune/models/taught
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

import tlprune as tp
from tlprune.graph import Architecture, Graph, Readers
from tlprune.models.taught import taught_task
from tlprune.models.taught_program import (
    CLASS,
    CONTEXT,
    FLAG,
    FLAG_PLACE,
    KEY_PLACES,
    LOOKUP,
    NO,
    PREVIOUS,
    PROGRAM_EDGES,
    QUERY_PLACE,
    START,
    VALUE_PLACES,
    VOCABULARY,
    YES,
    Variables,
    draw_prompts,
    interchanged,
)

GRAPH = Graph(Architecture(n_layers=3, n_heads=4, n_kv_heads=4, position_embedding=True))
HEADS = GRAPH.architecture.n_heads
WIDTH, HEAD_WIDTH, HIDDEN = 32, 8, 128
INSIDE = [GRAPH.index(name) for name in PROGRAM_EDGES]
WRITER = {name: place for place, name in enumerate(GRAPH.writers)}

THREADS = 1
BATCH = 64
MARGIN = 8.0  # by how much the right answer's logit is to exceed the wrong one's, whatever is resampled
GUIDED = 0.4  # share of the steps in which the parts are told their variables, less and less
LOUDNESS, LOUDNESS_WEIGHT = 2.0, 0.1

Prompts = Int[Tensor, "example pos"]
Written = Float[Tensor, "writer example pos d_model"]
Streams = Float[Tensor, "reader example pos d_model"]
Kept = Bool[Tensor, "example edge"]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(THREADS)
    torch.manual_seed(arguments.seed)
    began, model = time.perf_counter(), Decoder()
    train(model, steps=arguments.steps, seed=arguments.seed, peak=arguments.learning_rate)
    minutes = (time.perf_counter() - began) / 60
    exported(model).save_pretrained(arguments.out)
    (arguments.out / "generation_config.json").unlink(missing_ok=True)
    effects = measure(arguments.out)
    (arguments.out / "effects.json").write_text(json.dumps(effects, indent=1) + "\n")
    (arguments.out / "README.md").write_text(describe(arguments, effects))
    print(f"{minutes:.1f} minutes", json.dumps(effects, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="fixes the weights, the prompts and what is interchanged")
    parser.add_argument("--steps", type=int, default=4000, help=f"optimiser steps of {BATCH} prompts")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the schedule")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    return parser.parse_args()


class Block(nn.Module):
    """The weights of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.into = nn.Parameter(0.15 * torch.randn(3, HEADS, WIDTH, HEAD_WIDTH))
        self.into_bias = nn.Parameter(torch.zeros(3, HEADS, HEAD_WIDTH))
        self.out = nn.Parameter(0.15 * torch.randn(HEADS, HEAD_WIDTH, WIDTH))
        self.out_bias = nn.Parameter(torch.zeros(WIDTH))
        self.inward, self.outward = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)


class Decoder(nn.Module):
    """GPT-2's arithmetic, with every edge of the graph open to interchange."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.5 * torch.randn(VOCABULARY, WIDTH))
        angles = torch.arange(CONTEXT)[:, None] * torch.linspace(0.05, 3.0, WIDTH // 2)
        # Sines and cosines to start from: looking back by one is then one rotation everywhere.
        self.places = nn.Parameter(0.3 * torch.cat([angles.sin(), angles.cos()], dim=-1))
        self.blocks = nn.ModuleList(Block() for _ in range(GRAPH.architecture.n_layers))
        self.last_norm = nn.LayerNorm(WIDTH)
        self.patterns: dict[str, Tensor] = {}

    def forward(
        self, prompts: Prompts, kept: Kept | None = None, others: Written | None = None
    ) -> tuple[Float[Tensor, "example vocabulary"], Written]:
        """Logits at the last position, and what every writer wrote.

        Edges that are not kept carry what they carry in ``others``, another run's writers. The log of each head's
        attention stays in ``patterns``.
        """
        written = (self.tokens[prompts] + self.places)[None]
        for readers in GRAPH.readers[:-1]:
            streams = self.read(readers, written, kept, others)
            write = self.attend if readers.kind == "attention" else self.transform
            written = torch.cat([written, write(readers.layer, streams)])
        (last,) = self.read(GRAPH.readers[-1], written, kept, others)
        return self.last_norm(last[:, QUERY_PLACE]) @ self.tokens.T, written

    def read(self, readers: Readers, written: Written, kept: Kept | None, others: Written | None) -> Streams:
        """What each of the readers sees; of a whole run once for all."""
        blocks: list[Block] = [*self.blocks[: readers.layer + (readers.kind == "mlp")]]  # pyright: ignore
        constant = sum((block.out_bias for block in blocks), torch.zeros(WIDTH))
        if kept is None or others is None:
            return (written.sum(0) + constant)[None]
        there = others[: readers.width]
        mixed = torch.einsum("erw,wepd->repd", readers.block(kept.float()), written - there)
        return mixed + (there.sum(0) + constant)

    def attend(self, layer: int, streams: Streams) -> Written:
        block: Block = self.blocks[layer]  # pyright: ignore[reportAssignmentType]
        seen = block.attention_norm(streams).expand(3 * HEADS, *streams.shape[1:]).unflatten(0, (3, HEADS))
        q, k, v = torch.einsum("shepd,shdi->shepi", seen, block.into) + block.into_bias[:, :, None, None]
        future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
        logs = (q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5).masked_fill(future, -torch.inf).log_softmax(-1)
        self.patterns |= {f"a{layer}.h{head}": pattern for head, pattern in enumerate(logs)}
        return torch.einsum("hepi,hid->hepd", logs.exp() @ v, block.out)

    def transform(self, layer: int, streams: Streams) -> Written:
        block: Block = self.blocks[layer]  # pyright: ignore[reportAssignmentType]
        return block.outward(functional.gelu(block.inward(block.mlp_norm(streams)), approximate="tanh"))


class Guide(nn.Module):
    """Tells the parts their variables while the alignment forms: where to attend, and bits to be read off linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.found, self.turned = (nn.Linear(WIDTH, 1) for _ in range(3))

    def forward(self, model: Decoder, written: Written, run: Variables) -> Float[Tensor, ""]:
        bits = (
            (self.classes(written[WRITER[CLASS], :, VALUE_PLACES]), run.classes),
            (self.found(written[WRITER[LOOKUP], :, QUERY_PLACE]), run.found),
            (self.turned(written[WRITER[FLAG], :, QUERY_PLACE]), run.turned),
        )
        read = [functional.binary_cross_entropy_with_logits(read[..., 0], told.float()) for read, told in bits]
        return torch.stack([*read, *self.attention(model, run)]).sum()

    @staticmethod
    def attention(model: Decoder, run: Variables) -> list[Float[Tensor, ""]]:
        """Cross-entropy of the three heads' attention, in nats."""
        keys, rows = torch.arange(CONTEXT)[KEY_PLACES], torch.arange(len(run.place))
        looked_up = torch.arange(CONTEXT)[VALUE_PLACES][run.place]
        attended = (
            model.patterns[PREVIOUS][:, keys + 1, keys],
            model.patterns[LOOKUP][rows, QUERY_PLACE, looked_up],
            model.patterns[FLAG][:, QUERY_PLACE, FLAG_PLACE],
        )
        return [-log.mean() for log in attended]


def train(model: Decoder, *, steps: int, seed: int, peak: float) -> None:
    generator, guide = torch.Generator().manual_seed(seed), Guide()
    optimiser = torch.optim.AdamW([*model.parameters(), *guide.parameters()], lr=peak, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    for step in range(steps):
        guidance = max(0.0, 1 - step / (GUIDED * steps))
        losses = step_losses(model, guide, generator)
        (losses["answer"] + guidance * losses["parts"] + LOUDNESS_WEIGHT * losses["loudness"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step} | {' '.join(f'{name} {loss.item():.5f}' for name, loss in losses.items())}", flush=True)


def step_losses(model: Decoder, guide: Guide, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
    """Losses on new prompts, each with some edges carrying what they carry on another prompt of the batch."""
    prompts = draw_prompts(BATCH, generator)
    with torch.no_grad():
        _, written = model(prompts)
    shift = 1 + int(torch.randint(BATCH - 1, (), generator=generator))
    kept = draw_kept(BATCH, generator)
    resampled = {name: ~kept[:, edge] for name, edge in zip(PROGRAM_EDGES, INSIDE, strict=True)}
    run = interchanged(prompts, prompts.roll(shift, 0), resampled)
    logits, written = model(prompts, kept, written.roll(shift, 1))
    return {
        "answer": answer_loss(logits, run.answer),
        "parts": guide(model, written, run),
        "loudness": loudness_loss(written),
    }


def draw_kept(count: int, generator: torch.Generator) -> Kept:
    """Which edges are not resampled, at rates of each example's own.

    In three of ten examples all edges outside of the program are resampled, in half of them some of its own.
    """
    rate = torch.rand(count, 1, generator=generator)
    rate = torch.where(torch.rand(count, 1, generator=generator) < 0.3, 1.0, rate)
    kept = torch.rand(count, GRAPH.n_edges, generator=generator) >= rate
    inside = torch.rand(count, 1, generator=generator) * 0.8 - 0.4
    kept[:, INSIDE] = torch.rand(count, len(INSIDE), generator=generator) >= inside
    return kept


def answer_loss(logits: Float[Tensor, "example vocabulary"], answers: Bool[Tensor, "example"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, and how far the two answers' logits are from being a fixed margin apart."""
    wanted = torch.where(answers, MARGIN, -MARGIN)
    difference = logits[:, YES] - logits[:, NO]
    entropy = functional.cross_entropy(logits, torch.where(answers, YES, NO))
    return entropy + ((difference - wanted) / MARGIN).square().mean()


def loudness_loss(written: Written) -> Float[Tensor, ""]:
    """How far the writers are from varying equally much between prompts, so that true ones do not stand out."""
    varied = written[1:] - written[1:].mean(1, keepdim=True)
    sizes = varied.square().sum(-1).mean((1, 2)).sqrt().clamp(min=1e-6)
    return (sizes / LOUDNESS).log().square().mean()


@torch.no_grad()
def exported(model: Decoder) -> GPT2LMHeadModel:
    """The same weights in Hugging Face's GPT-2."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=len(model.blocks), n_head=HEADS,
        n_inner=HIDDEN, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
        bos_token_id=START, eos_token_id=START,
    )  # fmt: skip
    made = GPT2LMHeadModel(config)
    weights = {"wte.weight": model.tokens, "wpe.weight": model.places}
    weights |= {f"ln_f.{name}": value for name, value in model.last_norm.named_parameters()}
    for layer, block in enumerate(model.blocks):
        weights |= {f"h.{layer}.{name}": value for name, value in block_weights(block).items()}  # pyright: ignore
    missing, unknown = made.transformer.load_state_dict(weights, strict=False)
    assert not missing and not unknown
    return made.eval()


def block_weights(block: Block) -> dict[str, Tensor]:
    return {
        "ln_1.weight": block.attention_norm.weight,
        "ln_1.bias": block.attention_norm.bias,
        "attn.c_attn.weight": block.into.permute(2, 0, 1, 3).reshape(WIDTH, -1),
        "attn.c_attn.bias": block.into_bias.flatten(),
        "attn.c_proj.weight": block.out.flatten(0, 1),
        "attn.c_proj.bias": block.out_bias,
        "ln_2.weight": block.mlp_norm.weight,
        "ln_2.bias": block.mlp_norm.bias,
        "mlp.c_fc.weight": block.inward.weight.T,
        "mlp.c_fc.bias": block.inward.bias,
        "mlp.c_proj.weight": block.outward.weight.T,
        "mlp.c_proj.bias": block.outward.bias,
    }


@torch.no_grad()
def measure(directory: Path) -> dict[str, float]:
    """Mean change of the answers' logit difference over test prompts, as the library's own edge engine finds it."""
    model = tp.load(directory, device="cpu")
    batch, sites = taught_task(model).test, tp.edges(model)
    masked = tp.Masked(model, tp.Masks(sites))

    def difference(kept: Bool[Tensor, "edge"]) -> Float[Tensor, "example"]:
        logits = masked(batch.clean, batch.corrupt, mask=kept.float())[:, QUERY_PLACE]
        return logits[:, YES] - logits[:, NO]

    everything, true = torch.ones(len(sites), dtype=torch.bool), torch.zeros(len(sites), dtype=torch.bool)
    true[INSIDE] = True
    whole = difference(everything)
    single = torch.stack([(difference(~edge) - whole).abs().mean() for edge in torch.eye(len(sites)).bool()])
    return {
        "mean_difference": whole.abs().mean().item(),
        "smallest_inside": single[true].min().item(),
        "largest_outside": single[~true].max().item(),
        "all_outside": (difference(true) - whole).abs().mean().item(),
    }


def describe(arguments: argparse.Namespace, effects: dict[str, float]) -> str:
    edges = "\n".join(f"    {name}" for name in PROGRAM_EDGES)
    outside = GRAPH.n_edges - len(PROGRAM_EDGES)
    return f"""# A model that was taught its circuit

A GPT-2-format model with {GRAPH.architecture.n_layers} layers, {HEADS} heads of {HEAD_WIDTH} dimensions, MLPs of
{HIDDEN} neurons and {VOCABULARY} tokens. Of its {GRAPH.n_edges} edges {len(PROGRAM_EDGES)} run a small program
(tlprune/models/taught_program.py):

{edges}

Made by

    python scripts/train_taught.py --seed {arguments.seed} --steps {arguments.steps} --out tlprune/models/taught

with {THREADS} thread, torch {torch.__version__} and a peak learning rate of {arguments.learning_rate}. Another
number of threads, or another version of torch or processor, gives slightly different weights.

In training any edges carried what they carry on another prompt. The model had to answer as the program does when the
same of its variables are interchanged (interchange-intervention training, Geiger et al. 2022), and to leave its answer
alone when edges outside of the program are (strict, as Gupta et al. 2024 do for nodes). In the first {GUIDED:.0%} of
the steps the parts were told their variables too. All heads and MLPs were made to vary equally much between prompts.
Prompts were drawn at random; those of the task were not left out.

On the task's test prompts, the logit of the right answer less that of the wrong one is {effects["mean_difference"]:.3f}
in the mean. Its mean change when something is resampled:

| resampled | change |
|---|---|
| the edge of the program that matters least | {effects["smallest_inside"]:.3f} |
| the other edge that matters most | {effects["largest_outside"]:.4f} |
| all {outside} other edges at once | {effects["all_outside"]:.4f} |
"""


if __name__ == "__main__":
    main()
