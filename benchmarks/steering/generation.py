"""What does a grid of steered texts cost beside Hugging Face's generate with hooks?

Every configuration is one vector added after one block. The rivals are what a user would write: a
hook that adds it, and `generate` for a row at a time, or for a configuration at a time with its
prompts left padded. They are timed on a sample of rows and configurations and scaled up. Seconds
are those of the processor on a CPU, since other work may run beside it.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from actcache.engine.forward import residual_of
from actcache.engine.model import DTYPES, LanguageModel
from actcache.steering import Continuation, Request, Steering, generate
from actcache.steering.prefill import pad_prompts
from benchmarks.support.models import random_llama
from benchmarks.support.turns import arguments, in_turns, ratio, report

SHAPES: dict[str, dict[str, int]] = {
    "small": {"layers": 12, "d_model": 256, "heads": 8, "mlp": 704, "vocab": 8192},
    "llama-2-7b": {"layers": 32, "d_model": 4096, "heads": 32, "mlp": 11008, "vocab": 32000},
    "tiny": {"layers": 4, "d_model": 32, "heads": 2, "mlp": 64, "vocab": 97},
}

WAYS = {
    "rows": "a row at a time",
    "batches": "a configuration at a time",
    "unshared": "nothing shared",
    "plain": "plain generate of the batch",
}
"""Other ways of writing a grid."""


def make_requests(
    model: LanguageModel, *, configurations: int, prompts: int, tokens: int, policy: Any, first: int
) -> list[Request]:
    """Make a grid: each configuration steers one block from `first` on, for every prompt."""
    rng = np.random.default_rng(0)
    vocab = model.hf.config.vocab_size
    lengths = np.linspace(0.75 * tokens, 1.25 * tokens, prompts).round().astype(int)
    texts = [tuple(rng.integers(5, vocab, length).tolist()) for length in lengths]
    steerings = [
        Steering(
            layers=(first + number % (model.n_layers - first),),
            vectors=rng.standard_normal((1, model.d_model)).astype(np.float32),
            tokens=policy,
        )
        for number in range(configurations)
    ]
    return [Request(prompt=p, steering=s) for s, p in itertools.product(steerings, texts)]


@contextmanager
def pushed(model: LanguageModel, steering: Steering) -> Iterator[None]:
    """Steer by a hook as a user would write it: each pass's last token, or all of them."""
    push = torch.from_numpy(steering.strength * steering.vectors).to(model.device, model.hf.dtype)
    start = 0 if steering.tokens == "all" else -1

    def hook(_block: nn.Module, _args: Any, output: Any) -> Any:
        residual = residual_of(output)
        residual[:, start:] += push
        return output

    handle = model.anatomy.blocks[steering.layers[0]].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hf_generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], *, max_new: int
) -> list[list[int]]:
    """Generate greedily with Hugging Face's own loop, prompts left padded."""
    padded = pad_prompts(prompts)
    valid = np.arange(padded.width) >= padded.starts[:, None]
    ids = torch.from_numpy(padded.ids).to(model.device)
    mask = torch.from_numpy(valid).to(model.device, torch.int64)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        out = model.hf.generate(ids, attention_mask=mask, max_new_tokens=max_new, **options)
    tokens: list[list[int]] = out[:, padded.width :].tolist()
    return tokens


def measure_grid(
    model: LanguageModel, args: Any, *, new: int, against: Sequence[str], **grid: Any
) -> dict[str, Any]:
    """Time a grid against other ways of writing it."""
    requests = make_requests(model, **grid)
    by_configuration: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        by_configuration.setdefault(id(request.steering), []).append(number)
    rng = np.random.default_rng(1)
    few_rows = rng.permutation(len(requests))[: args.sample].tolist()
    configurations = list(by_configuration.values())
    few_configurations = [
        configurations[i] for i in rng.permutation(len(configurations))[: max(1, args.sample // 2)]
    ]
    texts: dict[str, dict[int, list[int]]] = {name: {} for name in ("ours", "rows", "batches")}

    def generate_texts() -> None:
        texts["ours"] = dict(enumerate(tokens_of(write(model, requests, args, new=new))))

    def rows() -> None:
        for number in few_rows:
            run_rival("rows", [number])

    def batches() -> None:
        for numbers in few_configurations:
            run_rival("batches", numbers)

    def run_rival(name: str, numbers: list[int]) -> None:
        steering = requests[numbers[0]].steering
        assert isinstance(steering, Steering)
        with pushed(model, steering):
            prompts = [requests[number].prompt for number in numbers]
            written = hf_generate(model, prompts, max_new=new)
        texts[name].update(zip(numbers, written, strict=True))

    ways = {
        "rows": rows,
        "batches": batches,
        "unshared": lambda: write(model, requests, args, new=new, sharing="none"),
        "plain": lambda: hf_generate(model, [r.prompt for r in requests], max_new=new),
    }
    took = in_turns(
        {"ours": generate_texts, **{name: ways[name] for name in against}},
        repeats=args.repeats,
        clock=args.clock,
    )
    scale = {
        "rows": len(requests) / len(few_rows),
        "batches": len(configurations) / len(few_configurations),
    }
    rivals = [(text, texts["ours"][i]) for n in ("rows", "batches") for i, text in texts[n].items()]
    figures: dict[str, Any] = {
        f"{WAYS[name]} / ours": ratio(took, name, "ours") * scale.get(name, 1) for name in against
    }
    if {"unshared", "plain"} <= set(against):
        figures["nothing shared / plain generate"] = ratio(took, "unshared", "plain")
    if rivals:
        equal = sum(text == other for text, other in rivals)
        figures["texts equal to the rivals'"] = f"{equal}/{len(rivals)}"
    return {**figures, "ours, seconds": min(took["ours"])}


def write(
    model: LanguageModel, requests: Sequence[Request], args: Any, *, new: int, sharing: Any = "auto"
) -> list[Continuation]:
    """Write all requests with our loop."""
    return generate(
        model,
        requests,
        max_new=new,
        end_tokens=(),
        batch_tokens=args.batch_tokens,
        sharing=sharing,
    )


def tokens_of(texts: Sequence[Continuation]) -> list[list[int]]:
    return [list(text.tokens) for text in texts]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--new", type=int, default=16, help="new tokens (default 16)")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--sample", type=int, default=12, help="rows of the rival (default 12)")
    parser.add_argument("--cases", nargs="*", help="some of the cases, by number")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    long, short = 120, 24
    if args.quick:
        args.shape, args.configurations, args.new, args.repeats = "tiny", 6, 4, 1
        args.sample, long, short = 4, 12, 4
    torch.set_num_threads(args.threads)
    args.clock = time.process_time if args.device == "cpu" else time.perf_counter
    model = random_llama(**SHAPES[args.shape], device=args.device, dtype=DTYPES[args.dtype])
    size = {"configurations": args.configurations, "prompts": args.prompts}
    late = model.n_layers // 2
    cases: dict[str, dict[str, Any]] = {
        "1 long prompts, steered from their last token on": {
            "new": args.new, "tokens": long, "policy": "prompt", "first": 0, **size,
            "against": ("rows", "batches", "unshared")},
        "2 long prompts, all tokens, blocks from L/2 on": {
            "new": args.new, "tokens": long, "policy": "all", "first": late, **size,
            "against": ("unshared", "plain")},
        "3 short prompts, long texts, all tokens, all blocks": {
            "new": 3 * args.new, "tokens": short, "policy": "all", "first": 0, **size,
            "against": ("rows", "unshared", "plain")},
        "4 one configuration, a prompt each, all tokens": {
            "new": args.new, "tokens": long, "policy": "all", "first": late,
            "configurations": 1, "prompts": args.configurations,
            "against": ("batches", "unshared")},
    }  # fmt: skip
    figures = {
        f"{name}: {figure}": value
        for name, case in cases.items()
        if not args.cases or name[0] in args.cases
        for figure, value in measure_grid(model, args, **case).items()
    }
    about = {
        "model": model.name,
        "device": args.device,
        "dtype": args.dtype,
        **size,
        "new": args.new,
        "rows sampled": args.sample,
        "clock": args.clock.__name__,
    }
    report("steered generation", figures, about=about)
    return figures


if __name__ == "__main__":
    main()
