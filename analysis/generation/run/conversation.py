"""A conversation with a steered model, token by token.

The cache of keys and values is the conversation: a token is steered once, when it is first read or
written, and what later turns change (another strength, no steering) changes later tokens alone.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from actcache.engine.model import LanguageModel, context_length
from actcache.errors import ActcacheError
from actcache.steering.hooks import steer
from actcache.steering.sampling import gumbel_noise
from actcache.steering.steering import AnySteering


class Conversation:
    """One conversation of a single row.

    Args:
        model: the model.
        end_tokens: token ids that end an answer.
        max_new: tokens of an answer at most.
        temperature: 0 is greedy.
        seed: of drawn tokens.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        end_tokens: Collection[int],
        max_new: int,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self._model = model
        self._end_tokens = frozenset(end_tokens)
        self._max_new, self._temperature, self._seed = max_new, temperature, seed
        self._cache = self._before = DynamicCache(config=model.hf.config)
        self._held: list[int] = []
        self._held_before: list[int] = []
        self._unread: list[int] = []
        self._message: list[int] = []
        self._turn = 0

    def answer(
        self, message: Sequence[int], steering: AnySteering | None, on_token: Callable[[int], None]
    ) -> None:
        """Read a message and write an answer to it.

        Args:
            message: token ids, from the end of the last answer up to where the new one begins.
            steering: of the tokens that are computed from now on; None for none.
            on_token: called with each token as soon as it is written.

        Raises:
            ActcacheError: the conversation does not fit into the context any more; it stays as it
                was.
        """
        tokens = [*self._unread, *message]
        self._require_room(tokens)
        self._before, self._message = copy.deepcopy(self._cache), tokens
        self._held_before = list(self._held)
        self._turn += 1
        self._unread = self._write(self._cache, self._held, tokens, steering, on_token)

    def answer_again(self, steering: AnySteering | None, on_token: Callable[[int], None]) -> None:
        """Write another answer to the last message; the conversation keeps the first one."""
        held = list(self._held_before)
        self._write(copy.deepcopy(self._before), held, self._message, steering, on_token)

    def _write(
        self,
        cache: DynamicCache,
        held: list[int],
        tokens: list[int],
        steering: AnySteering | None,
        on_token: Callable[[int], None],
    ) -> list[int]:
        """Write an answer; the last token, if the cache does not hold it yet.

        `held` are the tokens in the cache; both grow.
        """
        prompt = [*held, *tokens]
        steered: AbstractContextManager[None] = nullcontext()
        if steering is not None:
            # The prompt is the conversation so far: a prompt gate is decided anew for each answer.
            steered = steer(self._model, steering, prompt_width=len(prompt), prompts=[prompt])
        with torch.inference_mode(), steered:
            for step in range(self._max_new):
                ids = torch.tensor([tokens], device=self._model.device)
                output = self._model.hf(input_ids=ids, past_key_values=cache, use_cache=True)
                held += tokens
                token = self._choose(output.logits[0, -1], step)
                tokens = [token]
                if token in self._end_tokens:
                    return []  # what comes after an answer brings it
                on_token(token)
        return tokens

    def _choose(self, logits: Float[Tensor, " vocab"], step: int) -> int:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._temperature > 0:
            noise = gumbel_noise(self._seed, [self._turn], step=step, vocab=len(logits))
            logits = logits / self._temperature + torch.from_numpy(noise[0]).to(logits.device)
        return int(logits.argmax())

    def _require_room(self, tokens: list[int]) -> None:
        limit = context_length(self._model.hf.config.get_text_config())
        held = self._cache.get_seq_length()
        if limit is not None and held + len(tokens) + self._max_new > limit:
            raise ActcacheError(
                f"the conversation has {held + len(tokens)} tokens, with {self._max_new} new ones "
                f"more than the model's context of {limit}; nothing is cut. Start over with "
                "/reset, or pass a smaller --max-new."
            )
