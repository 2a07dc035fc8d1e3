"""Load a language model, take it apart, and say in a digest which weights it has.

The one place that knows Hugging Face's loading. `load_tokenizer` and `load_config` come first and
are cheap, so that every row is checked before the weights are read.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actcache.conventions import ATTENTION
from actcache.engine.anatomy import Anatomy, known_parts, refuse_family, take_apart
from actcache.engine.masks import BufferedMask, buffered_masks
from actcache.engine.sites import find_taps
from actcache.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in eval mode, and its parts."""

    name: str
    """Hub id or folder that it was loaded from."""

    hf: Any
    """The Hugging Face model, unchanged."""

    anatomy: Anatomy
    """Its blocks, final norm and unembedding."""

    own: Sequence[BufferedMask | None]
    """Masks that its blocks keep to themselves."""

    @property
    def n_layers(self) -> int:
        """How many blocks there are."""
        return len(self.anatomy.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    def width_of(self, site: str) -> int:
        """How many values a site has: `d_model`, or those of all heads.

        Of `heads` they are all heads' outputs together, of `attention` one a head.

        Raises:
            ModelError: the blocks have no such site.
        """
        if site == ATTENTION:
            return int(self.hf.config.get_text_config().num_attention_heads)
        if site != "heads":
            return self.d_model
        weight = find_taps(self.anatomy, site)[0].module.weight  # of the output projection
        assert isinstance(weight, Tensor)
        return weight.numel() // self.d_model

    @property
    def dtype(self) -> str:
        """What it computes in: `float32`, `bfloat16` or `float16`."""
        return str(self.hf.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device = self.hf.device
        assert isinstance(device, torch.device)
        return device

    @cached_property
    def digest(self) -> str:
        """Which weights these are; see `weights_digest`."""
        return weights_digest(self.hf)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and take it apart.

    Args:
        name: Hub id or local folder.
        revision: branch, tag or commit on the Hub.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto` (cuda, else mps, else cpu) or a torch device.
        device_map: spread the blocks over several devices, as Hugging Face's argument of that name
            does (`auto`, `balanced`, …); `device` is then not looked at.
        attention: `sdpa` or `eager`; by default sdpa where the family has it.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ModelError: it cannot be loaded, or its family is not handled.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(
            f"dtype is '{dtype}', expected auto, {', '.join(DTYPES)}. Pass one of them."
        )
    place = pick_device(device) if device_map is None else None
    logging.disable_progress_bar()
    whole = _config(name, revision=revision, trust_remote_code=trust_remote_code)
    refuse_family(whole)
    if whole.architectures:
        known_parts(whole)  # refuses a family that is not known, before its weights are read
    try:
        hf: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded("model", name, error) from error
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise ModelError(
            f"'{name}' does not fit into the devices' memory, so --device-map {device_map} left "
            "part of its weights outside, expected room for all. Use more devices or a smaller "
            "--dtype."
        )
    return adopt_model(hf if place is None else hf.to(place), name=name)


def adopt_model(hf: Any, *, name: str | None = None) -> LanguageModel:
    """Take an already loaded Hugging Face model; it is put into eval mode, nothing else changes.

    Raises:
        ModelError: its family is not handled.
    """
    hf.eval()
    hf.requires_grad_(requires_grad=False)
    anatomy = take_apart(hf)
    return LanguageModel(
        name if name is not None else str(hf.config.name_or_path or type(hf).__name__),
        hf,
        anatomy,
        buffered_masks(anatomy.blocks),
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer that belongs to a model.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded("tokenizer", name, error) from error


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The text part of a model's config: sizes, context, dtype; no weight is read.

    Raises:
        ModelError: there is none, or it is of a family that is refused.
    """
    config = _config(name, revision=revision, trust_remote_code=trust_remote_code)
    refuse_family(config)
    return config.get_text_config()


def _config(name: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded("model", name, error) from error


def context_of(config: Any) -> int | None:
    """How many tokens the model can hold, or None where its config does not say."""
    return getattr(config, "max_position_embeddings", None)


def pick_device(device: str) -> torch.device:
    """`auto` is the first of cuda, mps and cpu that is there.

    Raises:
        ModelError: the device is unknown or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device '{device}' is not to be had here ({str(error).splitlines()[0]}), expected "
            "auto, cpu, cuda, cuda:0 or mps. Pass one that is there."
        ) from error
    return place


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, whatever files it came from.

    Tensors are hashed side by side in threads (hashing lets go of the interpreter), and the hash of
    the hashes, in order of names, is the digest. Reads each weight once: about a second a gigabyte
    and core.
    """
    state = module.state_dict()
    names = sorted(state)
    with ThreadPoolExecutor() as threads:
        parts = threads.map(_tensor_digest, names, (state[name] for name in names))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over what the tokenizer does: its full definition where it can give one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _not_loaded(what: str, name: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"'{name}' brings code of its own to load its {what}, expected a family that "
            "transformers knows. Read that code, and pass --trust-remote-code to run it."
        )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    known = (
        "a local folder" if Path(name).exists() else "no local folder, and not to be had as Hub id"
    )
    return ModelError(
        f"cannot load the {what} of '{name}' ({known}): {first[:300]} "
        "Pass a folder with config.json, weights and tokenizer, or a Hub id that can be reached."
    )
