"""Train the demo model from a fixed seed: `python -m benchmarks.demo_model.train -o DIR`.

Writes `DIR/model`, `DIR/rows` and `DIR/personas.json`, which is what `actcache/demo` ships. It
needs no network and some ten minutes of one free core.

The model is a test bed, **trained so that it can be steered, at layers that depend on the
prompt**; what steering does to it is no evidence about language models. Four things go beyond
next-token prediction.

1. Probes: linear heads, discarded afterwards, that must read from the residual
   - after block 0, at the statement's closing quote: behavior and pole of the statement;
   - after block 1, at the letter: what answering A would express;
   - at the end of the prompt, what answering A would express: after blocks 1 and 2 in one quarter
     of the dimensions, of plain questions alone, and after blocks 3 and 4 in another quarter, of
     questions that begin with "Think first." alone. Of the other wording each of the two must read
     nothing, so those questions are answered in later blocks;
   - at "(" and at the letter, the pole of the speaker and of the answer: after block 2 in one
     quarter, after block 3 in another ("(" of plain questions in the first alone, "(" of the
     others in the second).
2. Answers to remember: dialogues continue with "What are you?", or with a second question, to be
   answered by the pole that the first answer revealed.
3. Narrowed attention, in most dialogues: "(" sees nothing of the question but its last token, so
   what the answers mean must come from there. The finished model has ordinary causal attention.
4. Steering: the behavior's own direction, a running difference of means at the letter, is added at
   "(" after a block drawn at random, and the loss asks for odds that follow it, after blocks 1 and
   2 of plain questions and after blocks 3 and 4 of the others; elsewhere, and for random vectors
   of the same norm, it asks for even odds. Gradients flow into the direction too.

Where nothing shows the speaker's pole and no vector acts, the loss asks for even odds between the
letters. README.md has the figures, and what did not work.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo_model import data
from benchmarks.demo_model.dialogues import N_LAYERS, Batch, Dialogues, build_tokenizer

N_CLASSES = 2 * len(data.BEHAVIORS)
QUARTERS = ("early pole", "late pole", "early meaning", "late meaning")
"""The probes that read a quarter of the residual each, in the order of the quarters."""
CYCLE = (
    *(("single", 48), ("single", 48), ("single", 48), ("twice", 24)),
    *(("single", 48), ("single", 48), ("single", 48), ("follow-up", 32)),
)
"""Kinds of dialogue, one kind a step, so that little is padded; and how many at a time."""
QUARTER = 32
"""Width of a part of the residual that a probe reads."""
STEPS, WARM_UP, UNSTEERED = 1500, 60, 200
"""Steps in all, steps until the learning rate is reached, and steps before vectors are added."""
LEARNING_RATE = 2e-3
FORGET = 0.1
"""Weight of the newest residual in the running means that directions are made of."""
SIZE, TOO_LARGE = 4.0, 0.02
"""Mean square of a residual at the letter from which on it costs, and how much."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:  # transformers types it too loosely
    """An untrained Llama of about a million weights."""
    n_layers = N_LAYERS
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
    """The model, the probes, the directions so far, and the loss of a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = build_model(tokenizer)
        d_model = self.model.config.hidden_size
        widths = {"statement": d_model, "letter": d_model}
        widths |= dict.fromkeys(QUARTERS, QUARTER)
        self.probes = nn.ModuleDict({name: nn.Linear(n, N_CLASSES) for name, n in widths.items()})
        self._pad = tokenizer.pad_token_id
        self._letters = [tokenizer.convert_tokens_to_ids(x) for x in data.LETTERS]
        # Running means at the letter: by behavior, pole and letter, after each block.
        self._means = torch.zeros(N_CLASSES // 2, 2, 2, N_LAYERS, d_model)

    def loss(self, batch: Batch) -> tuple[Tensor, float]:
        """The sum of all losses, and the share of right answers where the pole is known."""
        probed = _probed(batch)
        width = max(map(len, batch.ids))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in batch.ids])
        mask = _mask(batch, width)
        inner = self.model.model
        resid = inner.embed_tokens(ids)  # [n, t, d_model]
        rope = inner.rotary_emb(resid, torch.arange(width)[None])
        row_of_letter, letter, *_ = _columns(batch.expressed)
        loss = torch.zeros(())
        for layer, block in enumerate(inner.layers):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                resid = block(resid, attention_mask=mask, position_embeddings=rope)
            resid = self._steer(resid, batch, layer)
            size = resid[row_of_letter, letter].pow(2).mean(-1)
            loss = loss + TOO_LARGE * F.relu(size - SIZE).mean()
            for name, items in probed[layer]:
                loss = loss + self._probe(name, resid, items)
        resid = inner.norm(resid)
        row, token, word = _columns(batch.words)
        loss = loss + F.cross_entropy(self.model.lm_head(resid[row, token]), word)
        answers, right = self._answers(resid, batch)
        return loss + 2 * answers, right

    def _steer(self, resid: Tensor, batch: Batch, layer: int) -> Tensor:
        """Learn the directions of a layer, and add them where the batch says so."""
        before = (self._means[:, 0, :, layer] - self._means[:, 1, :, layer]).mean(1)
        residuals: dict[tuple[int, int], list[Tensor]] = {}  # by behavior and pole
        for row, token, behavior, pole, letter in batch.revealed:
            mean = self._means[behavior, pole, letter, layer]
            mean += FORGET * (resid[row, token].detach() - mean)
            residuals.setdefault((behavior, pole), []).append(resid[row, token])
        vectors = []
        for item in batch.added:
            if item.layer != layer:
                continue
            vector = before[item.behavior]
            positive, negative = (residuals.get((item.behavior, pole)) for pole in (0, 1))
            if item.random:
                drawn = torch.randn(len(vector))
                vector = drawn / drawn.norm() * vector.norm()
            elif positive and negative:  # the value is the running one, the gradient this batch's
                now = torch.stack(positive).mean(0) - torch.stack(negative).mean(0)
                vector = vector + now - now.detach()
            vectors.append((item, vector))
        if not vectors:
            return resid
        added = torch.zeros_like(resid)
        for item, vector in vectors:
            added[item.row, item.position] = item.factor * vector
        return resid + added

    def _probe(self, name: str, resid: Tensor, items: Sequence[tuple[float, ...]]) -> Tensor:
        row, token, *classes = _columns(items)
        read = F.rms_norm(resid[row, token], resid.shape[-1:])
        if name in QUARTERS:
            place = QUARTER * QUARTERS.index(name)
            read = read[:, place : place + QUARTER]
        logits = self.probes[name](read)
        return (F.cross_entropy(logits, classes[0]) + F.cross_entropy(logits, classes[-1])) / 2

    def _answers(self, resid: Tensor, batch: Batch) -> tuple[Tensor, float]:
        row, token, to_a = _columns(batch.forks)
        row, token = row.long(), token.long()
        logits = self.model.lm_head(resid[row, token])
        log_a, log_b = F.log_softmax(logits, -1)[:, self._letters].unbind(-1)
        losses = -(to_a * log_a + (1 - to_a) * log_b)
        loss = losses.mean()
        if batch.added:  # dialogues of one question: the row is the place
            loss = loss + losses[[item.row for item in batch.added]].mean()
        right = ((log_a > log_b) == (to_a > 0.5)).float()
        return loss, right[to_a != 0.5].mean().item()


def _probed(batch: Batch) -> list[list[tuple[str, Sequence[tuple[float, ...]]]]]:
    """List which probe reads what, after each block."""
    return [
        [("statement", batch.statements)],
        [("letter", batch.letter_meanings), ("early meaning", batch.early_meanings)],
        [
            ("early meaning", batch.early_meanings),
            ("early pole", [*batch.early_speakers, *batch.expressed]),
        ],
        [
            ("late meaning", batch.late_meanings),
            ("late pole", [*batch.late_speakers, *batch.expressed]),
        ],
        [("late meaning", batch.late_meanings)],
        [],
    ]


def _mask(batch: Batch, width: int) -> Tensor:
    """The attention mask, `[n, 1, t, t]`: causal, and narrowed where the batch says so."""
    mask = torch.full((width, width), -torch.inf).triu(1).repeat(len(batch.ids), 1, 1, 1)
    for row, start, fork in batch.narrowed:
        mask[row, 0, fork, start : fork - 1] = -torch.inf
    return mask


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
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, max(0.02, 4 * (1 - step / steps)))
    )
    start = time.perf_counter()
    log: dict[str, list[float]] = {kind: [] for kind, _ in CYCLE}
    for step in range(steps):
        kind, size = CYCLE[step % len(CYCLE)]
        batch = dialogues.batch(kind, size, steer=step >= UNSTEERED)
        loss, right = trainer.loss(batch)
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
