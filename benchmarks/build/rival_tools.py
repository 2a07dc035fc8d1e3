"""The last token's residuals of all layers by other tools, each called as its users would.

Every tool returns `[side, n, layer, d]` of the same texts, so that the results can be compared;
`DOES` lists what else each one does. Each call is the one in the tool's README, with batches of
the same size, gradients off, and the model loaded before the clock starts. `missing` tells which
ones are not installed; `benchmarks.build.rivals` says how to install them.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actcache.build.certify import certify, rows_of_certificate
from actcache.build.plan import BuildPlan
from actcache.build.run import run_build
from actcache.engine.batching import plan_batches
from actcache.engine.model import LanguageModel, load_model, load_tokenizer
from actcache.engine.self_check import check_capture
from actcache.engine.tree_capture import capture, tokens_run
from actcache.prompts.render import Rendered
from benchmarks.support.models import plain_forwards


@dataclass(frozen=True)
class Job:
    """What every tool is asked for: the last token's residuals of one or two texts a row."""

    folder: str
    """The model."""

    model: LanguageModel
    """The same model, loaded in float32."""

    plan: BuildPlan
    """The rows, and the positions that actcache reads."""

    texts: Sequence[Sequence[str]]
    """Texts of each side, which the tokenizer turns into `tokens`."""

    tokens: Sequence[Sequence[tuple[int, ...]]]
    """Their tokens."""

    batch: int
    """Texts in a batch of the rivals."""

    batch_tokens: int
    """Tokens in a batch of actcache, padding included."""


Run = Callable[[], np.ndarray]
"""Does the whole job and returns `[side, n, layer, d]`."""

DOES = {
    "actcache, in memory": "length-sorted, both completions as branches of one pass, no logits",
    "actcache, store on disk": "the same, and: checksums, syncs, self-check, certificate, read back",
    "plain forwards": "length-sorted Hugging Face forwards with logits; reads nothing, a floor",
    "transformers": "output_hidden_states; its last layer is after the final norm",
    "TransformerBridge": "run_with_cache, filtered to blocks.*.hook_out, left-padded with a mask",
    "steering-vectors": "extract_activations; keeps all tokens of a batch, then picks the last",
    "nnsight": "one trace a batch, left-padded, last token saved, stopped before the logits",
    "lmprobe": "UnifiedCache.warmup, one file a prompt without sync or checksum; load_pooled_batch",
}
"""What each tool does; all run in float32 on a model loaded before."""

PACKAGES = {"steering-vectors": "steering_vectors", "nnsight": "nnsight", "lmprobe": "lmprobe"}
"""The module of each rival that has to be installed."""


def missing(tool: str) -> bool:
    """Tell whether a tool has to be installed and is not."""
    package = PACKAGES.get(tool)
    return package is not None and importlib.util.find_spec(package) is None


def make(tool: str, job: Job) -> Run:
    """Set a tool up; this is not timed."""
    return MAKERS[tool](job)


def _in_memory(job: Job) -> Run:
    plan = job.plan
    costs = [tokens_run(row, positions=plan.positions, answer="first") for row in plan.rendered]

    def run() -> np.ndarray:
        shape = (len(costs), job.model.n_layers, len(plan.positions), job.model.d_model)
        residuals = np.empty(shape, np.float32)
        for batch in plan_batches(costs, budget=job.batch_tokens):
            rows = [plan.rendered[i] for i in batch]
            read = capture(
                job.model, rows, positions=plan.positions, answer="first", sites=("resid_post",)
            )
            residuals[batch] = read["resid_post"].cpu().numpy()
        return residuals.transpose(2, 0, 1, 3)

    return run


def _on_disk(job: Job) -> Run:
    job.model.digest  # noqa: B018  # computed once a model, as in a build of many rows

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            store = run_build(job.plan, Path(folder, "s.zarr"), model=job.model)
            return np.stack([store.resid(position)[:] for position in job.plan.positions])

    return run


def constant_part(job: Job, path: Path) -> Callable[[], object]:
    """Return what a build does once, for any number of rows: self-check and certificate."""
    store = run_build(job.plan, path, model=job.model)
    plan = job.plan
    settings: dict[str, Any] = {"positions": plan.positions, "sites": plan.config.sites}
    settings["answer"] = plan.config.answer

    def run() -> None:
        alone = check_capture(job.model, plan.rendered, read=capture, **settings).alone
        rows = rows_of_certificate(plan.n, seed=plan.config.seed, checked=alone)
        sampled = {i: plan.rendered[i] for i in rows}
        certify(store, job.model, sampled, alone=alone, **settings)

    return run


def _floor(job: Job) -> Run:
    def run() -> np.ndarray:
        for side in job.tokens:
            plain_forwards(job.model, side, budget=job.batch_tokens, logits=True)
        return np.empty(0)

    return run


def _transformers(job: Job) -> Run:
    tokenizer = _tokenizer(job, "right")

    def run_batch(texts: Sequence[str]) -> np.ndarray:
        given = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            hidden = job.model.hf(**given, output_hidden_states=True).hidden_states[1:]
        last, rows = given["attention_mask"].sum(1) - 1, torch.arange(len(texts))
        return torch.stack([layer[rows, last] for layer in hidden], 1).numpy()

    return _batched(job, run_batch)


def _bridge(job: Job) -> Run:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = load_model(
        job.folder, dtype="float32", device="cpu"
    ).hf  # a bridge rewrites its model
    tokenizer = _tokenizer(job, "left")
    bridge: Any = TransformerBridge.boot_transformers(
        job.folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )
    names = [f"blocks.{layer}.hook_out" for layer in range(job.model.n_layers)]

    def run_batch(texts: Sequence[str]) -> np.ndarray:
        given = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                given["input_ids"], attention_mask=given["attention_mask"], names_filter=names
            )
        return torch.stack([cache[name][:, -1] for name in names], 1).numpy()

    return _batched(job, run_batch)


def _steering_vectors(job: Job) -> Run:
    # The package exports a function of the same name as this module.
    package = importlib.import_module("steering_vectors.train_steering_vector")
    tokenizer = _tokenizer(job, "right")

    def run() -> np.ndarray:
        pairs = list(zip(job.texts[0], job.texts[-1], strict=True))
        by_side = package.extract_activations(job.model.hf, tokenizer, pairs, batch_size=job.batch)
        sides = [
            torch.stack([torch.cat(by_layer[layer]) for layer in sorted(by_layer)], 1)
            for by_layer in by_side
        ]
        return torch.stack(sides).numpy()

    return run


def _nnsight(job: Job) -> Run:
    package = importlib.import_module("nnsight")
    model = load_model(job.folder, dtype="float32", device="cpu")  # nnsight wraps its model
    path = next(
        name for name, module in model.hf.named_modules() if module is model.anatomy.blocks[0]
    )
    tokenizer = _tokenizer(job, "left")
    wrapped = package.TransformersModel(model.hf, task="text-generation", tokenizer=tokenizer)
    blocks: Any = reduce(getattr, path.split(".")[:-1], wrapped)

    def run_batch(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode(), wrapped.trace(list(texts)) as tracer:
            outputs = [block.output for block in blocks]
            last = [(out[0] if isinstance(out, tuple) else out)[:, -1] for out in outputs]
            stacked: Any = torch.stack(last, 1)
            saved = stacked.save()
            tracer.stop()
        residuals: torch.Tensor = saved
        return residuals.numpy()

    return _batched(job, run_batch)


def _lmprobe(job: Job) -> Run:
    package = importlib.import_module("lmprobe")
    cache = importlib.import_module("lmprobe.cache")
    backends = importlib.import_module("lmprobe.cache_backends")
    unified = package.UnifiedCache(
        model=job.folder,
        layers="all",
        compute_perplexity=False,
        device="cpu",
        batch_size=job.batch,
        cache_pooled=True,
        pooling="last_token",
        dtype="float32",
    )
    layers = list(range(job.model.n_layers))
    texts = [text for side in job.texts for text in side]

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:  # nothing is cached yet
            cache.set_cache_backend(backends.LocalCacheBackend(Path(folder)))
            os.environ["LMPROBE_CACHE_DIR"] = folder
            unified.warmup(texts)
            residuals = cache.load_pooled_batch(job.folder, texts, layers, "last_token")
        return np.asarray(residuals).reshape(len(job.texts), -1, len(layers), job.model.d_model)

    return run


MAKERS: dict[str, Callable[[Job], Run]] = {
    "actcache, in memory": _in_memory,
    "actcache, store on disk": _on_disk,
    "plain forwards": _floor,
    "transformers": _transformers,
    "TransformerBridge": _bridge,
    "steering-vectors": _steering_vectors,
    "nnsight": _nnsight,
    "lmprobe": _lmprobe,
}


def steered_alone(
    model: LanguageModel, row: Rendered, direction: torch.Tensor, multiplier: float, layer: int
) -> float:
    """Run one cell of steering-bench's loop: a `SteeringVector`, one forward per completion.

    Steers the fork and all tokens after it. The score is the log-probability of the tokens from
    the letter on. Token ids are given, which saves the loop the tokenizer.
    """
    vector = importlib.import_module("steering_vectors").SteeringVector({layer: direction})
    fork = len(row.chain) - 1
    scores = []
    for completion in (row.positive, row.negative):
        ids = torch.tensor([[*row.chain, *completion]])
        with (
            torch.inference_mode(),
            vector.apply(model.hf, multiplier=multiplier, min_token_index=fork),
        ):
            logits = model.hf(input_ids=ids).logits[0, fork:-1]
        log_probs = torch.log_softmax(logits.double(), -1)
        scores.append(log_probs[torch.arange(len(completion)), torch.tensor(completion)].sum())
    return float(scores[0] - scores[1])


def _tokenizer(job: Job, side: str) -> Any:
    tokenizer = load_tokenizer(job.folder)
    tokenizer.padding_side = side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _batched(job: Job, run_batch: Callable[[Sequence[str]], np.ndarray]) -> Run:
    """Run each side in batches, in the order of the rows."""

    def run() -> np.ndarray:
        return np.stack(
            [
                np.concatenate(
                    [
                        run_batch(side[start : start + job.batch])
                        for start in range(0, len(side), job.batch)
                    ]
                )
                for side in job.texts
            ]
        )

    return run
