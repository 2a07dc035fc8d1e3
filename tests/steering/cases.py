"""Steerings of every kind for a tiny model, scaled to its own activations."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from itertools import cycle, product
from typing import Any

import numpy as np
import torch

from actcache.engine.model import adopt_model
from actcache.engine.sites import find_taps
from actcache.steering import AnySteering, PromptGate, Steering, TokenGate
from actcache.steering.checks import SteeringSite
from tests.reference.steering import gate_similarities, reference_generate, sites_of
from tests.support.tiny import make, random_tokens

STEPS = 3
"""Tokens that are written in most tests."""

LENGTHS = (3, 11, 7)
"""Of the three prompts of a batch; windowed families see 8 tokens."""

STRENGTHS = {"add": 4.0 / 3, "ablate": 1.5, "set": -2.0, "turn_to": 150.0, "rotate": 150.0}
"""Of `add` and `set` in units of the activation's norm."""

LAYERS = ((1,), (0, 2), (3,), (1, 2), (2,), (0, 1, 2, 3))


class Family:
    """A tiny model with its prompts, and steerings that change what it writes."""

    def __init__(
        self, family: str, attention: str | None = None, dtype: torch.dtype = torch.float32
    ):
        self.family = family
        self.hf = make(family, dtype=dtype, attention=attention)
        self.hf.generation_config.eos_token_id = None
        self._untie()
        self.model = adopt_model(self.hf, name=family)
        self.sites: tuple[SteeringSite, ...] = sites_of(family)
        self.rng = np.random.default_rng(0)
        self.prompts = [random_tokens(self.rng, n) for n in LENGTHS]
        self.width = max(LENGTHS)
        self._written: dict[tuple[tuple[int, ...], int], tuple[AnySteering | None, Any]] = {}
        self.values = {site: self._read(site) for site in self.sites}
        self.gates = [
            self._gate(over, above) for over in ("mean", "last") for above in (True, False)
        ]

    def _untie(self) -> None:
        """Give the model a head of its own: with a tied one it repeats its last token, steered or not."""
        head = self.hf.get_output_embeddings()
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1))
        head.weight = torch.nn.Parameter(noise.to(head.weight.dtype))

    def _read(self, site: str) -> list[np.ndarray]:
        """The last token of the longest prompt at a site of each layer."""
        values: list[np.ndarray] = []
        handles = [
            tap.attach(lambda x: values.append(x.reshape(-1, x.shape[-1])[-1].float().numpy()))
            for tap in find_taps(self.model.anatomy, site)
        ]
        with torch.no_grad():
            self.hf(torch.tensor([self.prompts[1]]))
        for handle in handles:
            handle.remove()
        return values

    def _gate(self, over, above: bool) -> PromptGate:
        """A gate that is met by one or two of the three prompts."""
        vectors = self.rng.normal(size=(2, self.model.d_model)).astype(np.float32)
        gate = PromptGate(layers=(1, 3), vectors=vectors, threshold=0, above=above, over=over)
        pick = max if above else min
        decisive = sorted(pick(gate_similarities(self.hf, p, gate)) for p in self.prompts)
        return replace(gate, threshold=float(decisive[0] + decisive[1]) / 2)

    def steering(self, operator, site: SteeringSite, layers: tuple[int, ...], **fields) -> Steering:
        """One steering; b1 of `ablate`, `set` and planes lies near the activation."""
        values = [self.values[site][layer] for layer in layers]
        norm = float(np.mean([np.linalg.norm(value) for value in values]))
        strength = STRENGTHS[operator] * (norm if operator in ("add", "set") else 1)
        vectors = np.array([self._vectors(operator, value) for value in values])
        return Steering(
            operator=operator,
            site=site,
            layers=layers,
            vectors=vectors,
            strength=strength,
            **fields,
        )

    def _vectors(self, operator: str, value: np.ndarray):
        random = self.rng.normal(size=value.shape)
        random /= np.linalg.norm(random)
        if operator == "add":
            return 3 * random  # of any norm: λ multiplies it, a gate's projection does not
        # Halfway: what is left when all of an activation is removed would be rounding.
        b1 = value / np.linalg.norm(value) + self.rng.normal(size=value.shape) / len(value) ** 0.5
        b1 /= np.linalg.norm(b1)
        if operator in ("ablate", "set"):
            return b1
        b2 = random - (b1 @ random) * b1
        return np.array([b1, b2 / np.linalg.norm(b2)])

    def front(self, site: SteeringSite, k: int, gate: PromptGate | None) -> Steering:
        size = 2 * np.linalg.norm(self.values[site][1]) / self.model.d_model**0.5
        vectors = size * self.rng.normal(size=(k, self.model.d_model))
        return Steering(site=site, layers=(1,), vectors=vectors, tokens="front", gate=gate)

    @cached_property
    def kinds(self) -> list[AnySteering]:
        """All of `every_kind`."""
        return list(self.every_kind())

    @property
    def pairs_of_kinds(self) -> list[AnySteering]:
        """Those of `every_kind` in which any two of its four words meet; and all sums."""
        n_sites = len(self.sites)
        places = (
            ((operator * n_sites + site) * 3 + (operator + site) % 3) * 3
            + (operator + 2 * site) % 3
            for operator, site in product(range(len(STRENGTHS)), range(n_sites))
        )
        return [*(self.kinds[i] for i in places), *self.kinds[len(STRENGTHS) * n_sites * 9 :]]

    def write(self, prompt: tuple[int, ...], steering: AnySteering | None):
        """Tokens and logits of the reference, computed once for a prompt and a steering object."""
        key = prompt, id(steering)
        if key not in self._written:
            texts = reference_generate(self.hf, self.family, prompt, steering, steps=STEPS)
            self._written[key] = steering, texts  # with the object, whose id stays its own
        return self._written[key][1]

    def every_kind(self) -> Iterator[AnySteering]:
        """Operator × site × tokens × gate, with windows, renorm and layers in turn; and sums."""
        layers, gates = cycle(LAYERS), cycle(self.gates)
        windows = cycle((None, None, (0, 2), (1, None), (1, 2)))
        renorm = cycle((False, True, False))
        for operator, site, tokens, gate in product(
            STRENGTHS, self.sites, ("prompt", "completion", "all"), ("none", "token", "prompt")
        ):
            token_gate = TokenGate(threshold=0.1 * float(np.linalg.norm(self.values[site][1])))
            yield self.steering(
                operator,
                site,
                next(layers),
                tokens=tokens,
                gate={"none": None, "token": token_gate, "prompt": next(gates)}[gate],
                window=next(windows),
                renorm=next(renorm),
            )
        for number, site in enumerate(self.sites):
            yield self.front(site, 1 + number % 3, (None, self.gates[number % 4])[number % 2])
        adds = self.steering("add", "resid_post", (1, 2), tokens="all")
        ablates = self.steering("ablate", "resid_post", (1, 2))
        turns = self.steering("turn_to", "mlp_out", (1, 2))
        yield adds + ablates
        yield ablates + adds
        yield adds + self.steering("set", "ln1", (1, 2), tokens="all") + turns + adds


@cache
def family_of(family: str, attention: str | None = None) -> Family:
    """A family that several tests of a file share, with what its reference wrote."""
    return Family(family, attention)
