"""Other people's ways to the last token's residuals of all layers, each as its users would write it.

Every way gives `[side, n, layer, d]` of the same texts, so that equal results can be shown; what
each does beside that is said in `DOES`. None of them is bent: a call is what its README shows, with
batches of the same size, gradients off, the model loaded before the clock starts. Those that are
not installed are named by `missing`; see `bench_rivals` for how to install them.
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

from actcache.build.certify import certify
from actcache.build.plan import BuildPlan
from actcache.build.run import run_build
from actcache.engine.batching import plan_batches
from actcache.engine.model import LanguageModel, load_model, load_tokenizer
from actcache.engine.self_check import check_capture
from actcache.engine.tree_capture import capture, tokens_run
from actcache.prompts.render import Rendered
from benchmarks.models import plain_forwards


@dataclass(frozen=True)
class Job:
    """One question that every way answers: the last token's residuals of `sides` texts a row."""

    folder: str
    """The model."""

    model: LanguageModel
    """The same, loaded, in float32."""

    plan: BuildPlan
    """The rows, and the positions that ours reads."""

    texts: Sequence[Sequence[str]]
    """Texts of each side that the tokenizer turns into `tokens` again."""

    tokens: Sequence[Sequence[tuple[int, ...]]]
    """Their tokens."""

    batch: int
    """Texts in a batch of the rivals."""

    batch_tokens: int
    """Tokens in a batch of ours, padding included."""


Way = Callable[[], np.ndarray]
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
"""What each way does; all run in float32 with the model loaded before."""

PACKAGES = {"steering-vectors": "steering_vectors", "nnsight": "nnsight", "lmprobe": "lmprobe"}
"""The module of each rival that has to be installed."""


def missing(way: str) -> bool:
    """Whether the package of a way is not installed."""
    package = PACKAGES.get(way)
    return package is not None and importlib.util.find_spec(package) is None


def make(way: str, job: Job) -> Way:
    """Set a way up, outside the clock."""
    return _MAKERS[way](job)


def _ours(job: Job) -> Way:
    plan = job.plan
    costs = [tokens_run(row, positions=plan.positions, answer="first") for row in plan.rendered]

    def run() -> np.ndarray:
        shape = (len(costs), job.model.n_layers, len(plan.positions), job.model.d_model)
        found = np.empty(shape, np.float32)
        for batch in plan_batches(costs, budget=job.batch_tokens):
            rows = [plan.rendered[i] for i in batch]
            read = capture(
                job.model, rows, positions=plan.positions, answer="first", sites=("resid_post",)
            )
            found[batch] = read["resid_post"].cpu().numpy()
        return found.transpose(2, 0, 1, 3)

    return run


def _ours_on_disk(job: Job) -> Way:
    job.model.digest  # noqa: B018  # computed once a model, as in a build of many rows

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            store = run_build(job.plan, Path(folder, "s.zarr"), model=job.model)
            return np.stack([store.resid(position)[:] for position in job.plan.positions])

    return run


def constant_part(job: Job, path: Path) -> Callable[[], object]:
    """What a build does once, however many rows there are: the self-check and the certificate."""
    store = run_build(job.plan, path, model=job.model)
    plan = job.plan
    settings: dict[str, Any] = {"positions": plan.positions, "sites": plan.config.sites}
    settings["answer"] = plan.config.answer

    def run() -> None:
        check_capture(job.model, plan.rendered, read=capture, **settings)
        certify(store, job.model, plan.rendered, seed=plan.config.seed, **settings)

    return run


def _floor(job: Job) -> Way:
    def run() -> np.ndarray:
        for side in job.tokens:
            plain_forwards(job.model, side, budget=job.batch_tokens, logits=True)
        return np.empty(0)

    return run


def _transformers(job: Job) -> Way:
    tokenizer = _tokenizer(job, "right")

    def one(texts: Sequence[str]) -> np.ndarray:
        given = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            hidden = job.model.hf(**given, output_hidden_states=True).hidden_states[1:]
        last, rows = given["attention_mask"].sum(1) - 1, torch.arange(len(texts))
        return torch.stack([each[rows, last] for each in hidden], 1).numpy()

    return _batched(job, one)


def _bridge(job: Job) -> Way:
    from transformer_lens.model_bridge import TransformerBridge

    own = load_model(job.folder, dtype="float32", device="cpu").hf  # a bridge rewrites its model
    tokenizer = _tokenizer(job, "left")
    bridge: Any = TransformerBridge.boot_transformers(
        job.folder, hf_model=own, tokenizer=tokenizer, device="cpu"
    )
    names = [f"blocks.{layer}.hook_out" for layer in range(job.model.n_layers)]

    def one(texts: Sequence[str]) -> np.ndarray:
        given = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                given["input_ids"], attention_mask=given["attention_mask"], names_filter=names
            )
        return torch.stack([cache[name][:, -1] for name in names], 1).numpy()

    return _batched(job, one)


def _steering_vectors(job: Job) -> Way:
    # The package exports a function of the same name as this module.
    package = importlib.import_module("steering_vectors.train_steering_vector")
    tokenizer = _tokenizer(job, "right")

    def run() -> np.ndarray:
        pairs = list(zip(job.texts[0], job.texts[-1], strict=True))
        found = package.extract_activations(job.model.hf, tokenizer, pairs, batch_size=job.batch)
        sides = [torch.stack([torch.cat(by[x]) for x in sorted(by)], 1) for by in found]
        return torch.stack(sides).numpy()

    return run


def _nnsight(job: Job) -> Way:
    package = importlib.import_module("nnsight")
    own = load_model(job.folder, dtype="float32", device="cpu")  # it wraps its model
    path = next(name for name, each in own.hf.named_modules() if each is own.anatomy.blocks[0])
    tokenizer = _tokenizer(job, "left")
    wrapped = package.TransformersModel(own.hf, task="text-generation", tokenizer=tokenizer)
    blocks: Any = reduce(getattr, path.split(".")[:-1], wrapped)

    def one(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode(), wrapped.trace(list(texts)) as tracer:
            outputs = [block.output for block in blocks]
            last = [(each[0] if isinstance(each, tuple) else each)[:, -1] for each in outputs]
            stacked: Any = torch.stack(last, 1)
            found = stacked.save()
            tracer.stop()
        taken: torch.Tensor = found
        return taken.numpy()

    return _batched(job, one)


def _lmprobe(job: Job) -> Way:
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
            found = cache.load_pooled_batch(job.folder, texts, layers, "last_token")
        return np.asarray(found).reshape(len(job.texts), -1, len(layers), job.model.d_model)

    return run


_MAKERS: dict[str, Callable[[Job], Way]] = {
    "actcache, in memory": _ours,
    "actcache, store on disk": _ours_on_disk,
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
    """One cell of steering-bench's loop: a `SteeringVector` applied, a forward of each completion.

    Steers the fork and all after it. Score: log-probability of the tokens from the letter on. Token
    ids are given, which saves the loop its tokenizer.
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
        each = torch.log_softmax(logits.double(), -1)
        scores.append(each[torch.arange(len(completion)), torch.tensor(completion)].sum())
    return float(scores[0] - scores[1])


def _tokenizer(job: Job, side: str) -> Any:
    tokenizer = load_tokenizer(job.folder)
    tokenizer.padding_side = side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _batched(job: Job, one: Callable[[Sequence[str]], np.ndarray]) -> Way:
    """Batches of each side in the order of the rows."""

    def run() -> np.ndarray:
        return np.stack(
            [
                np.concatenate(
                    [one(side[at : at + job.batch]) for at in range(0, len(side), job.batch)]
                )
                for side in job.texts
            ]
        )

    return run
