"""One batch of rows, decoded together: each has its own prompt, steering and noise.

Every row's keys and values are kept, so that a step runs one token a row. Prompts are padded on the
left and positions are passed along, so all rows are in the same column at the same step. Rows whose
text has ended leave the batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from actcache.engine.model import LanguageModel
from actcache.steering.prefill import (
    pad_prompts,
    plan_stages,
    run_prompts,
    steering_hooks,
)
from actcache.steering.rows import Columns, SteeredRows
from actcache.steering.sampling import Continuation, Request, Sampling, gumbel_noise
from actcache.steering.steering import AnySteering, Steering

SharedPart = Literal["none", "prefix", "grow"]
"""What rows of one prompt share: nothing, all columns before the first steered one, or all blocks
below the first steered one."""

Done = Callable[[int, Continuation], None]
"""Takes a request's number and its finished text."""

Watch = Callable[[Sequence[int], int, Float[Tensor, "b vocab"]], None]
"""Sees request numbers, step and logits of every step."""


class DecodingBatch:
    """Rows that are decoded together.

    Args:
        model: the model.
        requests: all requests of the run.
        numbers: which of them these rows are.
        sampling: how tokens are chosen.
    """

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        numbers: Sequence[int],
        sampling: Sampling,
    ):
        self._model, self._sampling = model, sampling
        self._texts = [_Text(number, requests[number]) for number in numbers]
        prompts = list(dict.fromkeys(text.request.prompt for text in self._texts))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        self._prompts = pad_prompts(prompts)
        self._prompt_of = np.array([place[text.request.prompt] for text in self._texts])
        self._starts = self._prompts.starts[self._prompt_of]
        # Behind the last row one that is not steered, as which prompts are run.
        steerings = [*(text.request.steering for text in self._texts), None]
        self._steered = SteeredRows(model, steerings)
        self._cache = DynamicCache()
        self._column = 0

    def write(self, shared: SharedPart, done: Done, watch: Watch | None = None) -> None:
        """Write the text of every row."""
        with torch.inference_mode():
            hidden = self._run_prompts(shared)
            for step in range(self._sampling.max_new):
                logits = self._logits(hidden)
                if watch is not None:
                    watch([text.number for text in self._texts], step, logits)
                going = self._append(*self._choose(logits, step), done)
                if not going:
                    return
                if len(going) < len(self._texts):
                    self._keep(np.array(going))
                hidden = self._forward([text.tokens[-1] for text in self._texts])

    def _append(self, tokens: list[int], nlls: list[float], done: Done) -> list[int]:
        """Append each row's token; return the rows that go on."""
        going = []
        for row, (text, token, nll) in enumerate(zip(self._texts, tokens, nlls, strict=True)):
            broken = not math.isfinite(nll)
            ended = token in self._sampling.end_tokens and not broken
            if broken:
                text.nll = math.inf
            elif not ended:
                text.tokens.append(token)
                text.nll += nll
            if ended or broken or len(text.tokens) == self._sampling.max_new:
                done(text.number, text.finish(ended=ended))
            else:
                going.append(row)
        return going

    def _logits(self, hidden: Float[Tensor, "b d"]) -> Float[Tensor, "b vocab"]:
        """Compute logits of normed residuals, in float32 or wider."""
        anatomy = self._model.anatomy
        logits = anatomy.scale_and_cap(anatomy.unembed(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _choose(self, logits: Float[Tensor, "b vocab"], step: int) -> tuple[list[int], list[float]]:
        """Choose each row's token; return it with its negative log-probability."""
        scores = logits
        if self._sampling.temperature > 0:
            streams = {text.request.noise: 0 for text in self._texts}
            place = {stream: i for i, stream in enumerate(streams)}
            noise = gumbel_noise(
                self._sampling.seed, list(streams), step=step, vocab=logits.shape[1]
            )
            rows = torch.tensor([place[text.request.noise] for text in self._texts])
            noise_of_row = torch.from_numpy(noise).to(logits.device)[rows.to(logits.device)]
            scores = logits / self._sampling.temperature + noise_of_row
        tokens = scores.argmax(-1)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        return tokens.tolist(), (logits.logsumexp(-1) - chosen).tolist()

    def _run_prompts(self, shared: SharedPart) -> Float[Tensor, "b d"]:
        """Fill the cache with the prompts; return the normed residual of each one's last token."""
        n, n_layers = len(self._texts), self._model.n_layers
        steerings = [text.request.steering for text in self._texts]
        same_as = np.arange(n)
        first_blocks = np.zeros(n, np.int64)
        columns = self._prompts.width
        if shared == "prefix":
            first_blocks += n_layers + 1  # no row ever enters
            columns -= any(map(steers_last_prompt_token, steerings))
        elif shared == "grow":
            first_blocks = np.array(self._steered.first_blocks[:n])
            same: dict[tuple[int, int], int] = {}
            keys = zip(self._prompt_of.tolist(), map(id, steerings), strict=True)
            same_as = np.array([same.setdefault(key, row) for row, key in enumerate(keys)])
        last = None
        if columns:
            stages = plan_stages(self._prompt_of, same_as, first_blocks, n_layers=n_layers)
            self._cache, last = run_prompts(
                self._model,
                self._prompts,
                stages,
                self._steered,
                columns=columns,
                room=self._prompts.width - columns + self._sampling.max_new - 1,
            )
        self._column = columns
        self._steered = self._steered.select(np.arange(n))
        if last is None or columns < self._prompts.width:
            last = self._forward([text.request.prompt[-1] for text in self._texts])
        return last

    def _forward(self, tokens: Sequence[int]) -> Float[Tensor, "b d"]:
        """Run the next column, one token of each row; return its normed residual."""
        device, column = self._model.device, self._column
        self._column += 1
        columns = Columns(
            first=column, prompt_width=self._prompts.width, starts=torch.from_numpy(self._starts)
        )
        valid = np.arange(column + 1) >= self._starts[:, None]

        def change(site: str, layer: int, value: Tensor) -> Tensor:
            return self._steered.apply(site, layer, value, columns)

        with steering_hooks(self._steered.taps, change):
            states: Tensor = self._model.anatomy.decoder(
                input_ids=torch.tensor(tokens, device=device)[:, None],
                attention_mask=torch.from_numpy(valid).to(device, torch.int64),
                # Always explicit: GPT-2 would count the padding on the left.
                position_ids=torch.from_numpy(column - self._starts).to(device)[:, None],
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        return states[:, -1]

    def _keep(self, rows: Int64[np.ndarray, " _"]) -> None:
        """Drop all other rows."""
        self._texts = [self._texts[row] for row in rows]
        self._starts = self._starts[rows]
        self._steered = self._steered.select(rows)
        layers: list[Any] = self._cache.layers
        for layer in layers:
            layer.keep(rows)


def steers_last_prompt_token(steering: AnySteering | None) -> bool:
    """Tell whether a steering changes the logits of the first new token."""
    return any(part.tokens != "completion" for part in parts_of(steering))


def steers_earlier_tokens(steering: AnySteering | None) -> bool:
    """Tell whether a steering changes keys of tokens before the prompt's last."""
    return any(part.tokens in ("all", "front") for part in parts_of(steering))


def parts_of(steering: AnySteering | None) -> tuple[Steering, ...]:
    """List the single steerings; none where there is no steering."""
    return steering.parts if steering is not None else ()


class _Text:
    """One row's text so far."""

    def __init__(self, number: int, request: Request):
        self.number, self.request = number, request
        self.tokens: list[int] = []
        self.nll = 0.0

    def finish(self, *, ended: bool) -> Continuation:
        n = len(self.tokens)
        mean = self.nll / n if n else (self.nll or math.nan)
        return Continuation(tokens=tuple(self.tokens), ended=ended, nll_steered=mean)
