"""Load a language model, find its parts, and identify its weights by a digest.

The one module that knows how Hugging Face loads. `load_tokenizer` and `load_config` are cheap and
come first, so that every row is checked before the weights are read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actcache.conventions import MASS_SITES
from actcache.engine.anatomy import Anatomy, find_components, refuse_unsupported, take_apart
from actcache.engine.forward import can_share_beginnings
from actcache.engine.sites import find_taps
from actcache.errors import ModelError
from actcache.hub import first_sentence, prepare_hub
from actcache.prompts.beginnings import NOT_SHARED, Beginnings, find_beginnings
from actcache.settings import check_word

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
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

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.anatomy.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    def width_of(self, site: str) -> int:
        """Count a site's values: `d_model`, all outputs of `heads`, one a head of `attention`."""
        if site in MASS_SITES:
            return int(self.hf.config.get_text_config().num_attention_heads)
        if site != "heads":
            return self.d_model
        # The output projection maps all heads' outputs to d_model; families transpose it or not.
        weight = find_taps(self.anatomy, site)[0].module.weight
        assert isinstance(weight, Tensor)
        return weight.numel() // self.d_model

    @property
    def dtype(self) -> str:
        """The dtype that it computes in: `float32`, `bfloat16` or `float16`."""
        return str(self.hf.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        device = self.hf.device
        assert isinstance(device, torch.device)
        return device

    @cached_property
    def can_share_beginnings(self) -> bool:
        """Whether rows that begin alike can run what they share once; tried on a few tokens."""
        return can_share_beginnings(self.anatomy, self.device)

    def find_beginnings(self, heads: Sequence[Sequence[int]]) -> Beginnings:
        """Find what a batch's rows share and this family can run once; see `find_beginnings`."""
        beginnings = find_beginnings(heads)
        return beginnings if beginnings.length and self.can_share_beginnings else NOT_SHARED

    @cached_property
    def digest(self) -> str:
        """Identity of the weights; see `weights_digest`."""
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
    """Load a model and find its parts.

    Args:
        name: Hub id or local folder.
        revision: branch, tag or commit on the Hub.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto` (cuda, else mps, else cpu) or a torch device.
        device_map: spread the blocks over several devices, as Hugging Face's argument of that name
            does (`auto`, `balanced`, …); `device` is then ignored.
        attention: `sdpa` or `eager`; by default sdpa where the family supports it.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ModelError: it cannot be loaded, or its family is not supported.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_word("dtype", dtype, ("auto", *DTYPES), error=ModelError)
    check_device(device, device_map)
    target = pick_device(device) if device_map is None else None
    logging.disable_progress_bar()
    config = _full_config(name, revision=revision, trust_remote_code=trust_remote_code)
    refuse_unsupported(config)
    if config.architectures:
        find_components(config)  # refuses an unknown family before its weights are read
    with _loading("model", name):
        hf: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            weights_only=True,  # runs no code of a pickle, whatever the default becomes
        )
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise ModelError(
            f"'{name}' does not fit into the devices' memory, so --device-map {device_map} left "
            "part of its weights outside, expected room for all. Use more devices or a smaller "
            "--dtype."
        )
    return adopt_model(hf if target is None else hf.to(target), name=name)


def adopt_model(hf: Any, *, name: str | None = None) -> LanguageModel:
    """Use a Hugging Face model that is already loaded; sets eval mode, without gradients."""
    hf.eval()
    hf.requires_grad_(requires_grad=False)
    return LanguageModel(
        name if name is not None else str(hf.config.name_or_path or type(hf).__name__),
        hf,
        take_apart(hf),
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer that belongs to a model."""
    from transformers import AutoTokenizer

    with _loading("tokenizer", name):
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the text part of a model's config: sizes, context, dtype; no weights are read."""
    config = _full_config(name, revision=revision, trust_remote_code=trust_remote_code)
    refuse_unsupported(config)
    return config.get_text_config()


def _full_config(name: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    with _loading("model", name):
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )


def context_length(config: Any) -> int | None:
    """Read how many tokens the model can hold; None where its config does not say."""
    return getattr(config, "max_position_embeddings", None)


def pick_device(device: str) -> torch.device:
    """Choose a torch device; `auto` is the first of cuda, mps and cpu that is available."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)  # a device that is named but absent fails here
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device '{device}' is not available here, expected auto, cpu, cuda, cuda:0 or mps. "
            "Pass one that this machine has."
        ) from error
    return chosen


def check_device(device: str, device_map: str | dict[str, Any] | None) -> None:
    """Refuse a device, or a way to spread blocks over devices, that this machine does not have."""
    if device_map is None:
        pick_device(device)
    elif isinstance(device_map, str) and device_map not in _DEVICE_MAPS:
        try:
            pick_device(device_map)
        except ModelError as error:
            raise ModelError(
                f"device_map is '{device_map}', expected {', '.join(_DEVICE_MAPS)} or a device of "
                "this machine. Pass one of them."
            ) from error


def pickled_weights(folder: Path) -> str | None:
    """Name the file of weights that is a pickle, where a folder has no other; else None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((path.name for path in sorted(folder.glob("pytorch_model*.bin"))), None)


def weights_digest(module: nn.Module) -> str:
    """Hash every tensor's name, dtype, shape and bytes, whatever files they came from (SHA-256).

    Tensors are hashed in parallel threads (hashing releases the interpreter lock); the digest is
    the hash of their hashes, in order of names. Takes about a second per gigabyte and core.
    """
    state = module.state_dict()
    names = sorted(state)
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_tensor_digest, names, (state[name] for name in names))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash a tokenizer's full definition, or its vocabulary if it has no other (SHA-256)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _loading(what: str, name: str) -> Iterator[None]:
    """Explain the errors of Hugging Face's loaders; damaged files raise whatever they like."""
    if not name:
        raise ModelError(f"the {what} has no name, expected a folder or a Hub id. Pass one.")
    if not Path(name).exists() and (name[0] in "./~" or name.count("/") > 1):
        raise ModelError(
            f"there is no folder '{name}' to load the {what} from. Pass a folder with config.json, "
            "weights and tokenizer, or a Hub id."
        )
    prepare_hub(name)
    try:
        yield
    except ModelError:
        raise
    except MemoryError as error:
        raise ModelError(_no_memory(what, name)) from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise ModelError(_no_memory(what, name)) from error
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"'{name}' needs code of its own to load its {what}, expected a family that "
                "transformers knows. Read that code, and pass --trust-remote-code to run it."
            ) from error
        is_local = Path(name).exists()
        where = "a local folder" if is_local else "no such folder, and not available on the Hub"
        raise ModelError(
            f"cannot load the {what} of '{name}' ({where}): {first_sentence(error)} Pass a folder "
            "with config.json, weights and tokenizer, or a Hub id that can be reached."
        ) from error


def _no_memory(what: str, name: str) -> str:
    return (
        f"the {what} of '{name}' does not fit into memory, expected room for its weights. Use a "
        "smaller --dtype, a smaller model, or a machine with more memory."
    )
