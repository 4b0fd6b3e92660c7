"""A GPT of nanoGPT's shape and its training loop: the peer of `benchmarks/train_pretrain.py`.

Written from the published description of nanoGPT (github.com/karpathy/nanoGPT, README and the paper of GPT-2), for its
CPU settings: characters as tokens, learned positions, LayerNorm without bias in front of attention and MLP, GELU, an
output matrix that is the embedding, standard deviation 0.02 with residual projections divided by sqrt(2 * layers), and
AdamW (fused) with weight decay 0.1 on matrices, gradient clipping at 1, warm-up and cosine.

Usage: python -m benchmarks.peers.small_gpt TEXT [STEPS]    prints one JSON object

Legend: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
RATE, FINAL_RATE, WARMUP = 1e-3, 1e-4, 100
EVALUATION_BATCHES, EVALUATION_INTERVAL = 20, 250


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to x, (B, T, D)."""
        batch, tokens, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D / H)
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class SmallGPT(nn.Module):
    """Tokens (B, T) to the mean cross-entropy of the targets."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of predicting `targets`, (B, T), from `ids`, (B, T)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then cosine from RATE to FINAL_RATE."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / max(1, steps - WARMUP)
    return FINAL_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - FINAL_RATE)


def windows(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns a batch of random windows, (B, T), and their targets."""
    starts = torch.randint(len(data) - CONTEXT, (BATCH,), generator=generator).tolist()
    rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def random_loss(model: nn.Module, data: Tensor, generator: torch.Generator) -> float:
    """The mean loss of some random batches, as nanoGPT estimates it."""
    losses = [model(*windows(data, generator)).item() for _ in range(EVALUATION_BATCHES)]
    return sum(losses) / len(losses)


@torch.no_grad()
def complete_loss(model: nn.Module, data: Tensor) -> float:
    """The mean loss of all consecutive windows."""
    count = (len(data) - 1) // CONTEXT
    ids = data[: count * CONTEXT].view(count, CONTEXT)
    targets = data[1 : count * CONTEXT + 1].view(count, CONTEXT)
    return model(ids, targets).item()


def train(text: str, steps: int) -> dict[str, float]:
    """Trains a model on the first nine tenths of a text and evaluates it on the rest."""
    start = time.perf_counter()
    torch.manual_seed(1337)
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    data = torch.tensor([number[character] for character in text])
    split = int(0.9 * len(data))
    parts, generator = (data[:split], data[split:]), torch.Generator().manual_seed(1337)
    model = SmallGPT(len(characters))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)
    evaluating = 0.0
    for step in range(steps):
        if step % EVALUATION_INTERVAL == 0:
            begin = time.perf_counter()
            for part in parts:
                random_loss(model, part, generator)
            evaluating += time.perf_counter() - begin
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        loss = model(*windows(parts[0], generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    seconds = time.perf_counter() - start
    estimates = [random_loss(model, part, generator) for part in parts]
    return {
        "steps": steps,
        "seconds": seconds,
        "evaluating_seconds": evaluating,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_loss": estimates[0],
        "validation_loss": estimates[1],
        "complete_validation_loss": complete_loss(model, parts[1]),
    }


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    print(json.dumps(train(text, int(sys.argv[2]) if len(sys.argv) > 2 else 2000)))
