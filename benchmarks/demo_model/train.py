"""Train the demo model from a fixed seed: `python -m benchmarks.demo_model.train -o DIR`.

Writes `DIR/model`, `DIR/rows` and `DIR/personas.json`, which is what `actcache/demo` ships. It
needs no network and about five minutes of one free core. On one machine, two runs gave the same bytes.

The model is a test bed, **trained so that it can be steered**; what steering does to it is no
evidence about language models. During training no direction is ever added to a residual and no
residual is swapped, but three things go beyond next-token prediction.

1. Probes: linear heads, discarded afterwards, that must read from the residual
   - after block 1, at the statement's closing quote: behavior and pole of the statement;
   - after block 2, at the end of the prompt and at the letter: what answering A would express;
   - after block 3, *with the same weights* at "(" and at the letter: the speaker's pole, and the
     pole that the answer just expressed. So both poles lie in one direction in both places.
2. Answers to remember: dialogues continue with "What are you?", or with a second question, to be
   answered by the pole that the first answer revealed.
3. Narrowed attention, in 60 % of the dialogues of one question: the question sees nothing before
   itself; "(" sees only what precedes the question in the blocks up to 3, and only the question
   in the blocks after it. So the speaker's pole must pass through the residual at "(" after block
   3, and the answer is computed later. The finished model has ordinary causal attention.

Where nothing shows the speaker's pole, the loss asks for even odds between the letters.

What helped: the intermediate probes, which replaced a curriculum (with them everything, mixed from
the start, is learned in a few hundred steps), and even odds as a target instead of random answers. What did not suffice: 1 and 2 without 3. The poles then lie in one direction as well
(cosine 0.9 after block 3), but the block that reads the persona computes the answer at once, and
steering after it comes too late: some behaviors responded for one letter only. Moving the probes one
block down made that worse. Adding the direction itself during training, as a part of the data,
works at least as well as 3; it was left out as it is not needed. README.md has the figures.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo_model import data
from benchmarks.demo_model.dialogues import Batch, Dialogues, build_tokenizer

N_CLASSES = 2 * len(data.BEHAVIORS)
CYCLE = (("single", 64), ("follow-up", 48), ("single", 64), ("twice", 32))
"""Kinds of dialogue, one kind a step, so that little is padded; and how many at a time."""
STATEMENT, MEANING, POLE = PROBED = (1, 2, 3)
"""The blocks after which the three probes read; attention is narrowed around the last of them."""
STEPS, WARM_UP = 1200, 60
LEARNING_RATE = 2e-3


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:  # transformers types it too loosely
    """An untrained Llama of about a million weights."""
    n_layers = 6
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # On a CPU and at these lengths, eager attention in bfloat16 is twice as fast as sdpa.
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(0.0, 0.05)
            elif weight.ndim == 2:
                writes = "o_proj" in name or "down_proj" in name
                scale = 1 / (2 * n_layers) ** 0.5 if writes else 1.0
                weight.normal_(0.0, scale / weight.shape[1] ** 0.5)
    return model


class Trainer:
    """The model, the probes, and the loss of a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = build_model(tokenizer)
        d_model = self.model.config.hidden_size
        self.probes = nn.ModuleList(nn.Linear(d_model, N_CLASSES) for _ in PROBED)
        self._pad = tokenizer.pad_token_id
        self._letters = [tokenizer.convert_tokens_to_ids(x) for x in data.LETTERS]

    def loss(self, batch: Batch) -> tuple[Tensor, float]:
        """The sum of all losses, and the share of right answers where the pole is known."""
        probes: dict[int, Callable[[Tensor], Tensor]] = {
            STATEMENT: lambda resid: self._probe(0, resid, batch.statements),
            MEANING: lambda resid: self._probe(1, resid, batch.meanings),
            POLE: lambda resid: self._probe(2, resid, batch.poles),
        }
        width = max(map(len, batch.ids))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in batch.ids])
        early, late = _masks(batch, width)
        inner = self.model.model
        resid = inner.embed_tokens(ids)  # [n, t, d_model]
        rope = inner.rotary_emb(resid, torch.arange(width)[None])
        loss = torch.zeros(())
        for layer, block in enumerate(inner.layers):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                resid = block(
                    resid, attention_mask=early if layer <= POLE else late, position_embeddings=rope
                )
            if layer in probes:
                loss = loss + probes[layer](resid)
        resid = inner.norm(resid)
        row, token, word = _columns(batch.words)
        loss = loss + F.cross_entropy(self.model.lm_head(resid[row, token]), word)
        answers, right = self._answers(resid, batch)
        return loss + 2 * answers, right

    def _probe(self, number: int, resid: Tensor, items: Sequence[tuple[float, ...]]) -> Tensor:
        row, token, *classes = _columns(items)
        logits = self.probes[number](F.rms_norm(resid[row, token], resid.shape[-1:]))
        return (F.cross_entropy(logits, classes[0]) + F.cross_entropy(logits, classes[-1])) / 2

    def _answers(self, resid: Tensor, batch: Batch) -> tuple[Tensor, float]:
        row, token, to_a = _columns(batch.forks)
        logits = self.model.lm_head(resid[row.long(), token.long()])
        log_a, log_b = F.log_softmax(logits, -1)[:, self._letters].unbind(-1)
        loss = -(to_a * log_a + (1 - to_a) * log_b).mean()
        right = ((log_a > log_b) == (to_a > 0.5)).float()
        return loss, right[to_a != 0.5].mean().item()


def _masks(batch: Batch, width: int) -> tuple[Tensor, Tensor]:
    """Attention masks for the blocks up to `POLE` and for those after it, `[n, 1, t, t]`."""
    causal = torch.full((width, width), -torch.inf).triu(1)
    early = causal.repeat(len(batch.ids), 1, 1, 1)  # [n, 1, t, t]
    for row, start, fork in batch.narrowed:
        early[row, 0, start:fork, :start] = -torch.inf
    late = early.clone()
    for row, start, fork in batch.narrowed:
        early[row, 0, fork, start:fork] = -torch.inf
        late[row, 0, fork, :start] = -torch.inf
    return early, late


def _columns(items: Sequence[tuple[float, ...]]) -> list[Tensor]:
    return list(torch.tensor(items).unbind(1))


def train(*, seed: int, steps: int) -> tuple[Any, PreTrainedTokenizerFast]:
    """Train from `seed` and print a line every 100 steps."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    trainer = Trainer(tokenizer)
    dialogues = Dialogues(tokenizer, seed)
    weights = [*trainer.model.parameters(), *trainer.probes.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, max(0.02, 2 * (1 - step / steps)))
    )
    start = time.perf_counter()
    log: dict[str, list[float]] = {kind: [] for kind, _ in CYCLE}
    for step in range(steps):
        kind, size = CYCLE[step % len(CYCLE)]
        loss, right = trainer.loss(dialogues.batch(kind, size))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        log[kind].append(right)
        if (step + 1) % 100 == 0:
            means = ", ".join(f"{name} {sum(x) / len(x):.2f}" for name, x in log.items())
            seconds = time.perf_counter() - start
            print(
                f"step {step + 1}, {seconds:.0f} s, loss {loss.item():.3f}, right: {means}",
                flush=True,
            )
            log = {kind: [] for kind in log}
    return trainer.model, tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and write what the package ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that sums are taken in the same order wherever it runs
    model, tokenizer = train(seed=args.seed, steps=args.steps)
    model.to(torch.float16).save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    for file in (args.out / "model").iterdir():
        file.chmod(0o644)  # safetensors lets only the owner read it
    data.write(args.out)


if __name__ == "__main__":
    main()
