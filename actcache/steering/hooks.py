"""Steer a running model: hooks on the places that rows steer, gone when the context is left.

A hook sees the tokens of one forward pass. Which tokens of the sequence they are follows from the
length of the cache, which the first block is called with; where each row's prompt starts, from the
attention mask or the positions. So a token is steered once, when it is first computed, and Hugging
Face's `generate` works unchanged.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import Cache

from actcache.engine.anatomy import take_apart
from actcache.engine.model import LanguageModel
from actcache.errors import MismatchError, ModelError
from actcache.steering.prompt_gates import pass_prompt_gates
from actcache.steering.rows import Columns, SteeredRows
from actcache.steering.steering import AnySteering


@contextmanager
def steer(
    model: LanguageModel | Any,
    steerings: AnySteering | Sequence[AnySteering | None] | None,
    *,
    prompt_width: int,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Iterator[None]:
    """Steer every forward pass of a model while the context lasts.

    Plain Hugging Face generation works inside, with whatever cache, search or sampling:

        with actcache.steer(model, steerings, prompt_width=ids.shape[1]):
            model.hf.generate(ids, attention_mask=mask)

    A token is steered once, when it is first computed. Rows that are not steered keep their bits.

    Args:
        model: a `LanguageModel`, or a Hugging Face model as it is.
        steerings: one for all rows, or one a row; None steers nothing. A batch of k
            times as many rows holds each k times in a row, as beams and several returns do.
        prompt_width: columns of the prompts, padding on the left included. Under chunked prefill or
            with a cache passed in, it cannot be seen from a forward pass.
        prompts: token ids of each row's prompt, without padding. Steerings with a `PromptGate` need
            them: a pass without steering decides which rows are steered.

    Raises:
        ModelError: the model is compiled or is steered already, or its blocks lack a site.
        MismatchError: a layer, width or number of rows does not fit; nothing was run.
    """
    if prompt_width < 1:
        raise MismatchError(
            f"prompt_width is {prompt_width}, expected the number of columns of the prompts, "
            "at least 1. Pass the width of the input ids."
        )
    refuse_compiled(model.hf if isinstance(model, LanguageModel) else model)
    if not isinstance(model, LanguageModel):
        model = LanguageModel(str(model.config.name_or_path), model, take_apart(model))
    alone = not isinstance(steerings, Sequence)
    if not isinstance(steerings, Sequence):
        steerings = [steerings] * (1 if prompts is None else len(prompts))
    if prompts is not None:
        steerings = pass_prompt_gates(model, prompts, steerings)
    rows = SteeredRows(model, steerings)
    state = _Pass(rows, alone=alone and prompts is None, prompt_width=prompt_width)
    with ExitStack() as stack:
        stack.enter_context(claim_model(model))
        stack.enter_context(_without_compiled_calls(model.hf))
        for module in dict.fromkeys((model.hf, model.anatomy.decoder)):
            handle = module.register_forward_pre_hook(state.see_inputs, with_kwargs=True)
            stack.callback(handle.remove)
        first = model.anatomy.blocks[0]
        stack.callback(first.register_forward_pre_hook(state.begin, with_kwargs=True).remove)
        for (site, layer), tap in rows.taps.items():
            stack.callback(tap.replace(state.change(site, layer)).remove)
        yield
        if state.rows is None:
            raise ModelError(
                f"no forward pass of '{model.name}' ran inside the context, expected one at least. "
                "A compiled copy of a model skips hooks: run the model itself."
            )


class _Pass:
    """The forward pass that runs now: its rows and its columns."""

    def __init__(self, plan: SteeredRows, *, alone: bool, prompt_width: int) -> None:
        self.rows: SteeredRows | None = None
        self._plan, self._alone, self._prompt_width = plan, alone, prompt_width
        self._by_size: dict[int, SteeredRows] = {}
        self._inputs: dict[str, Any] = {}
        self._columns = Columns(first=0, prompt_width=prompt_width)

    def see_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep what a call of the whole model says of padding."""
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        bound = {**bound.pop("kwargs", {}), **bound}
        given = {name: bound.get(name) for name in ("attention_mask", "position_ids")}
        self._inputs |= {name: x for name, x in given.items() if isinstance(x, Tensor)}

    def begin(self, _block: nn.Module, args: Any, kwargs: Any) -> None:
        """Find rows and columns, when the first block is called."""
        if torch.compiler.is_compiling():
            raise ModelError(_COMPILED)
        values = (*args, *kwargs.values())
        b, t = next(x for x in values if isinstance(x, Tensor)).shape[:2]
        first = next((int(x.get_seq_length()) for x in values if isinstance(x, Cache)), 0)
        starts = None
        if first < self._prompt_width - 1:  # later tokens are real in every row
            starts = _starts(self._inputs, b, first + t)
        self._inputs = {}
        self._columns = Columns(first=first, prompt_width=self._prompt_width, starts=starts)
        if b not in self._by_size:
            self._by_size[b] = self._repeated(b)
        self.rows = self._by_size[b]

    def change(self, site: str, layer: int) -> Callable[[Tensor], Tensor]:
        """Make the change of the value at one place."""

        def change(value: Tensor) -> Tensor:
            assert self.rows is not None
            return self.rows.apply(site, layer, value, self._columns)

        return change

    def _repeated(self, b: int) -> SteeredRows:
        n = self._plan.n_rows
        if self._alone:
            return self._plan.select(np.zeros(b, np.int64))
        if not n or b % n:
            raise MismatchError(
                f"a forward pass has {b} rows, expected {n} as there are steerings, or a multiple "
                "of it. Pass one steering (or None) a row."
            )
        return self._plan.select(np.arange(b) // (b // n))


def _starts(inputs: dict[str, Tensor], b: int, end: int) -> Int64[Tensor, " b"] | None:
    """The column of each row's first real token, in a pass that ends before column `end`."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is not None and mask.ndim == 2:
        return mask.to(torch.int64).argmax(-1)  # the first 1
    if positions is not None and positions.ndim == 2:  # with a static cache the mask is 4D
        return (end - 1 - positions[:, -1].to(torch.int64)).expand(b)
    return None


_COMPILED = (
    "the model is compiled, expected one that is not: compiled code skips hooks, so nothing would "
    "be steered. Load it anew without torch.compile, and pass disable_compile=True to generate."
)


def refuse_compiled(hf: nn.Module) -> None:
    """Refuse a model of which a part was compiled.

    Raises:
        ModelError: hooks on it would be skipped.
    """
    for module in hf.modules():
        forward = vars(module).get("forward")
        compiled = hasattr(module, "_orig_mod") or hasattr(forward, "_torchdynamo_orig_callable")
        if compiled or getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(_COMPILED)


@contextmanager
def _without_compiled_calls(hf: Any) -> Iterator[None]:
    """Refuse `generate`'s own compilation, which it turns to for static caches on a GPU."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise ModelError(_COMPILED)

    hf.get_compiled_call = refuse
    try:
        yield
    finally:
        del hf.get_compiled_call


@contextmanager
def claim_model(model: LanguageModel) -> Iterator[None]:
    """Let one context at a time steer a model."""
    claim = object()
    attributes = vars(model.anatomy.decoder)
    if attributes.setdefault("_steered_by", claim) is not claim:  # atomic
        raise ModelError(
            f"'{model.name}' is steered already, expected one context at a time. Leave the other "
            "one first; steerings that act together are added: a + b."
        )
    try:
        yield
    finally:
        del attributes["_steered_by"]
