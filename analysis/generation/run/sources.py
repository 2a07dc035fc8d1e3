"""What is known of a run's model before its weights are loaded: tokenizer, template, end tokens.

Of a results folder the store says which model it is, of a steering file the file itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.analysis.generation.folder import Generations, is_generations
from actcache.build.provenance import model_identity
from actcache.engine.model import (
    LanguageModel,
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    tokenizer_digest,
)
from actcache.errors import ActcacheError, StoreNotFoundError
from actcache.identity import IDENTITY, require_same
from actcache.prompts.render import Renderer, Rendering
from actcache.steering.source import template_digest
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.steering.source import SteeringSource
    from actcache.steering.steering import AnySteering


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model is, which one it must be, and how its prompts are made."""

    name: str
    revision: str | None
    dtype: str
    trust_remote_code: bool = False

    identity: Mapping[str, Any]
    """Fields of `actcache.identity.IDENTITY` that it must have; those that are None may be any."""

    renderer: Renderer = field(repr=False)
    tokenizer: Any = field(repr=False)

    shape: Any = field(repr=False)
    """The text part of its Hugging Face config."""

    @property
    def context(self) -> int | None:
        """Tokens that it can hold; None where its config does not say."""
        return context_length(self.shape)

    def end_tokens(self, end: str | None) -> frozenset[int]:
        """Find the token ids that end a text: the model's, and the one that the user names.

        Args:
            end: text of a token; empty for no end token at all; None for the model's alone.

        Raises:
            ActcacheError: there is none, or the text is not one token.
        """
        if end == "":
            return frozenset()
        ids = self._own_end_tokens()
        if end is not None:
            tokens = self.tokenizer(end, add_special_tokens=False)["input_ids"]
            if len(tokens) != 1:
                raise ActcacheError(
                    f"end is {end!r}, which is {len(tokens)} tokens of '{self.name}', expected "
                    "one. Name a single token, or '' for none."
                )
            ids |= set(tokens)
        if not ids:
            raise ActcacheError(
                f"neither tokenizer nor config of '{self.name}' names an end token, so every text "
                "would run on. Pass --end TOKEN, or --end '' for texts of --max-new tokens."
            )
        return frozenset(ids)

    def _own_end_tokens(self) -> set[int]:
        from transformers import GenerationConfig

        given = [self.tokenizer.eos_token_id, getattr(self.shape, "eos_token_id", None)]
        try:
            config = GenerationConfig.from_pretrained(self.name, revision=self.revision or "main")
            given.append(config.eos_token_id)
        except (OSError, ValueError):  # most folders have no generation_config.json
            pass
        return {
            int(token)
            for ids in given
            if ids is not None
            for token in (ids if isinstance(ids, list) else [ids])
        }

    def load(self, *, device: str = "auto", device_map: str | None = None) -> LanguageModel:
        """Load the weights.

        Raises:
            MismatchError: it is another model; names the field.
        """
        model = load_model(
            self.name,
            revision=self.revision,
            dtype=self.dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=self.trust_remote_code,
        )
        self.require(model)
        return model

    def require(self, model: LanguageModel) -> None:
        """Refuse another model."""
        expected = {name: value for name, value in self.identity.items() if value is not None}
        loaded = model_identity(model)
        require_same(
            {name: loaded[name] for name in expected},
            expected,
            what="the model and that of the directions",
            remedy=f"Load the one that they were made with, '{self.name}'.",
        )


def store_source(
    store: Store, *, name: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Describe the model that a store was built with; `name` is where it is now.

    Raises:
        ActcacheError: it cannot be found, or has another tokenizer.
    """
    recorded = store.provenance["model"]
    place: dict[str, Any] = {
        "revision": store.config["revision"],
        "trust_remote_code": trust_remote_code,
    }
    name = name or str(recorded["name"])
    tokenizer = load_tokenizer(name, **place)
    _require_tokenizer(tokenizer, store.provenance["tokenizer"]["sha256"])
    template = store.provenance["tokenizer"]["template"]
    tokenizer.chat_template = template
    rendering = Rendering(
        template="none" if template is None else "auto",
        **{setting: store.config[setting] for setting in ("system", "space", "bos")},
    )
    return ModelSource(
        name=name,
        dtype=recorded["dtype"],
        identity={key: recorded[key] for key in IDENTITY},
        renderer=Renderer(tokenizer, rendering),
        tokenizer=tokenizer,
        shape=load_config(name, **place),
        **place,
    )


def steering_source(
    source: "SteeringSource | None",
    *,
    name: str | None = None,
    dtype: str = "auto",
    rendering: Rendering,
    trust_remote_code: bool = False,
) -> ModelSource:
    """Describe the model that a steering is for; `name` is where it is now.

    Raises:
        ActcacheError: it is not known or cannot be found, or has another tokenizer.
    """
    known = {} if source is None else source.document()
    place: dict[str, Any] = {
        "revision": known.get("revision"),
        "trust_remote_code": trust_remote_code,
    }
    name = name or known.get("model")
    if name is None:
        raise ActcacheError(
            "the file does not say which model it is for, expected one. Pass --model."
        )
    tokenizer = load_tokenizer(name, **place)
    if known.get("tokenizer_sha256") is not None:
        _require_tokenizer(tokenizer, known["tokenizer_sha256"])
    renderer = Renderer(tokenizer, rendering)
    stored = known.get("template_sha256")
    if stored is not None and rendering.template == "auto":
        require_same(
            None if renderer.template is None else template_digest(renderer.template),
            stored,
            what="the chat template and that of the directions",
            remedy="Pass --template FILE, or --template none for plain prompts.",
        )
    return ModelSource(
        name=name,
        dtype=known.get("dtype") or dtype,
        identity={key: known.get(key) for key in IDENTITY},
        renderer=renderer,
        tokenizer=tokenizer,
        shape=load_config(name, **place),
        **place,
    )


def open_steering(path: str | Path) -> "AnySteering":
    """Open a steering file, or the steering that `steer` chose in GEN.

    Raises:
        StoreNotFoundError: there is none.
        ActcacheError: the file is damaged.
    """
    from actcache.steering.steering import Steering

    path = Path(path)
    if path.is_dir():
        if not is_generations(path):
            raise StoreNotFoundError(
                f"'{path}' is a folder without a steering, expected a steering file or what steer "
                "left. Choose one with: actcache steer OUT -o GEN"
            )
        path = Generations(path).steering_path
    if not path.is_file():
        raise StoreNotFoundError(
            f"no steering at '{path}', expected a file that actcache wrote. Make one with: "
            "actcache steer OUT -o GEN"
        )
    return Steering.load(path)


def _require_tokenizer(tokenizer: Any, digest: str) -> None:
    require_same(
        tokenizer_digest(tokenizer),
        digest,
        what="the tokenizer and that of the directions",
        remedy="Load the one that they were made with.",
    )
