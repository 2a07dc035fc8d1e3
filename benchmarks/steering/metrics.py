"""What do all metrics of generated texts but a judge's cost beside generating them?

The metrics are one pass of the unsteered model over prompt and text (`score_texts`, which also
reads one layer's mean residual), and what the text itself shows. For comparison each text is read
in a row of its own, in plain padded batches. Seconds are those of the processor on a CPU.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from actcache.analysis.generation.metrics import TextRules, measure_text
from actcache.analysis.generation.phrases import load_phrases
from actcache.analysis.generation.targets import compile_form
from actcache.engine.model import DTYPES, LanguageModel
from actcache.steering import Continuation, score_texts
from benchmarks.steering.generation import SHAPES, make_requests, write
from benchmarks.support.models import plain_forwards, random_llama
from benchmarks.support.turns import arguments, in_turns, ratio, report


def measure_metrics(model: LanguageModel, args: Any, *, new: int, **grid: Any) -> dict[str, Any]:
    """Time the metrics of a grid's texts against its generation."""
    requests = make_requests(model, **grid)
    prompts = [request.prompt for request in requests]
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (model.hf.config.vocab_size, 4))
    words = ["".join(row) for row in letters]
    rules = TextRules(form=compile_form(r"\(\s*[AB]\s*\)"), phrases=load_phrases().phrases)
    written: list[Continuation] = []

    def generation() -> None:
        written[:] = write(model, requests, args, new=new)

    def reading() -> None:
        score_texts(
            model,
            prompts,
            [text.tokens for text in written],
            read_layers=(model.n_layers // 2,),
            batch_tokens=args.batch_tokens,
        )

    def looking() -> None:
        for text in written:
            joined = " ".join(words[token] for token in text.tokens)
            measure_text(joined, n=len(text.tokens), ended=text.ended, rules=rules)

    def rows() -> None:
        sequences = [[*p, *text.tokens] for p, text in zip(prompts, written, strict=True)]
        plain_forwards(model, sequences, budget=args.batch_tokens, logits=True)

    took = in_turns(
        {"generation": generation, "reading": reading, "looking": looking, "rows": rows},
        repeats=args.repeats,
        clock=args.clock,
    )
    took["metrics"] = [a + b for a, b in zip(took["reading"], took["looking"], strict=True)]
    return {
        "metrics / generation": ratio(took, "metrics", "generation"),
        "of it the text itself": ratio(took, "looking", "generation"),
        "a row a text / score_texts": ratio(took, "rows", "reading"),
        "generation, seconds": min(took["generation"]),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--new", type=int, default=16, help="new tokens (default 16)")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    long, short = 120, 24
    if args.quick:
        args.shape, args.configurations, args.new, args.repeats = "tiny", 6, 4, 1
        long, short = 12, 4
    torch.set_num_threads(args.threads)
    args.clock = time.process_time if args.device == "cpu" else time.perf_counter
    model = random_llama(**SHAPES[args.shape], device=args.device, dtype=DTYPES[args.dtype])
    size = {"configurations": args.configurations, "prompts": args.prompts}
    cases: dict[str, dict[str, Any]] = {
        "1 long prompts, steered from their last token on": {
            "new": args.new, "tokens": long, "policy": "prompt", "first": 0, **size},
        "2 long prompts, all tokens, blocks from L/2 on": {
            "new": args.new, "tokens": long, "policy": "all", "first": model.n_layers // 2, **size},
        "3 short prompts, long texts": {
            "new": 3 * args.new, "tokens": short, "policy": "prompt", "first": 0, **size},
        "4 one configuration, a prompt each": {
            "new": args.new, "tokens": long, "policy": "prompt", "first": 0,
            "configurations": 1, "prompts": args.configurations},
    }  # fmt: skip
    figures = {
        f"{name}: {figure}": value
        for name, case in cases.items()
        for figure, value in measure_metrics(model, args, **case).items()
    }
    about = {
        "model": model.name,
        "device": args.device,
        "dtype": args.dtype,
        **size,
        "new": args.new,
        "batch tokens": args.batch_tokens,
        "clock": args.clock.__name__,
    }
    report("metrics of generated texts", figures, about=about)
    return figures


if __name__ == "__main__":
    main()
