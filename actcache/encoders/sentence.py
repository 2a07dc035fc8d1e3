"""Embeds texts with a BERT or a sentence encoder that transformers loads and runs here.

Knows Hugging Face's loading and the files that sentence-transformers puts beside a model; knows no
store. Does what sentence-transformers does for folders of Transformer, Pooling and Normalize, and
refuses folders that need more.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from actcache.encoders.spec import Pooling
from actcache.engine.batching import plan_batches
from actcache.errors import ModelError

if TYPE_CHECKING:  # importing it means importing torch
    from torch import Tensor

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""

_UNSAID = 10**9  # tokenizers that know no limit say something above this


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Pooled vectors of texts, and what made them."""

    vectors: Float32[np.ndarray, "n e"]
    """One for each text, in order; not scaled."""

    settings: dict[str, Any]
    """Model, digest of its weights, commit, pooling, limit and width."""

    tokens: int
    """Tokens that were run, special ones with them, padding not."""

    n_truncated: int
    """Texts longer than the limit."""


def encode_sentences(
    texts: Sequence[str],
    *,
    model: str,
    pooling: Pooling | None = None,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    on_texts: Callable[[Sequence[str]], None] = lambda _texts: None,
) -> Sentences:
    """Run an encoder over texts, those of like length together, in float32.

    **Pooling**, where none is given: what the folder's own `1_Pooling/config.json` says (named by
    its `modules.json`); without one `mean` if the folder is a sentence-transformers one at all,
    which is that library's default; else `cls` if the tokenizer begins every text with a CLS token
    (BERT, as in the W2S paper), else `mean`. Mean is over all tokens but padding, CLS and SEP with
    them, as in sentence-transformers.

    **Limit**: the smallest of what sentence-transformers' config, tokenizer and position embeddings
    say. Longer texts are cut at the end, and counted. No code of the checkpoint's own is run, and
    the prompts that some folders define for queries are not added.

    Args:
        texts: any; an empty one is its special tokens.
        model: Hub id or local folder.
        pooling: `cls`, the first token's last state, or `mean`.
        device: `auto` (cuda, else mps, else cpu) or a torch device.
        batch_tokens: tokens of a pass, padding included.
        on_texts: told which texts are done, each time.

    Returns:
        `[n, hidden_size]`. A text's vector does not depend on its batch but in the last digits.

    Raises:
        ModelError: it cannot be loaded, is no encoder, lacks weights, or pools otherwise.
    """
    import torch

    from actcache.engine.model import load_tokenizer, pick_device, weights_digest

    place = pick_device(device)
    tokenizer = load_tokenizer(model)
    folder = _read_folder(model, explicit=pooling is not None)
    encoder = _load(model)
    how = pooling or folder.pooling or _usual(tokenizer)
    limit = _limit(folder, tokenizer, encoder)
    whole = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    cut = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    digest = weights_digest(encoder)
    encoder.to(place)
    vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    with torch.inference_mode():
        for rows in plan_batches([len(ids) for ids in cut], budget=batch_tokens):
            ids, mask = _padded([cut[row] for row in rows], tokenizer.pad_token_id or 0)
            states = encoder(input_ids=ids.to(place), attention_mask=mask.to(place))[0]
            vectors[rows] = _pool(states, mask.to(place), how).cpu().numpy()
            on_texts([texts[row] for row in rows])
    return Sentences(
        vectors=vectors,
        settings={
            "model": model,
            "weights_sha256": digest,
            "commit": getattr(encoder.config, "_commit_hash", None),
            "pooling": how,
            "max_tokens": limit,
            "dimension": vectors.shape[1],
        },
        tokens=sum(map(len, cut)),
        n_truncated=sum(len(ids) > limit for ids in whole),
    )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """Token ids and mask `[b, t]`, padded on the right, where absolute positions are untouched."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


def _pool(states: "Tensor", mask: "Tensor", how: Pooling) -> "Tensor":
    """`[b, t, e]` to `[b, e]`."""
    if how == "cls":
        return states[:, 0]
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _load(name: str) -> Any:
    """The encoder in float32 and eval mode, without the pooler that BERT puts on top."""
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # a checkpoint's unused language-model head is no news
    try:
        encoder, found = AutoModel.from_pretrained(
            name, dtype="float32", trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(
            f"cannot load the encoder '{name}': {first[:300]} Pass a folder with config.json, "
            "weights (model.safetensors) and tokenizer, or a Hub id that can be reached."
        ) from error
    finally:
        logging.set_verbosity(loudness)
    if encoder.config.is_encoder_decoder:
        raise ModelError(
            f"'{name}' is of the family '{encoder.config.model_type}' of encoder and decoder, "
            "expected an encoder alone, such as BERT. Pass one."
        )
    random = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if random:
        raise ModelError(
            f"'{name}' lacks {len(random)} of the encoder's weights ('{random[0]}', …), which "
            "would be random. Pass a complete checkpoint."
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # not used; and random where a checkpoint has none
    return encoder.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class _Folder:
    """What sentence-transformers' files say of a model."""

    pooling: Pooling | None
    max_tokens: int | None


def _read_folder(name: str, *, explicit: bool) -> _Folder:
    """What the files say; `explicit`: pooling was chosen, so what they say of it does not count."""
    modules = _json(name, "modules.json", needed=not explicit)
    config = _json(name, "sentence_bert_config.json", needed=not explicit)
    try:
        kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules or []}
        limit = (config or {}).get("max_seq_length")
        pooling_file = f"{kinds.get('Pooling') or '1_Pooling'}/config.json"
        declared = _json(name, pooling_file, needed=not explicit)
        modes = [] if declared is None else _modes(declared)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"the sentence-transformers files of '{name}' have an unknown shape ({error!r}), "
            f"expected modules with type and path. Pass 'hf:{name}:mean' or another model."
        ) from error
    more = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    known: dict[str, Pooling] = {
        "cls_token": "cls",
        "cls": "cls",
        "mean_tokens": "mean",
        "mean": "mean",
    }
    if not explicit and (more or (declared is not None and [m in known for m in modes] != [True])):
        raise ModelError(
            f"'{name}' pools its tokens by {modes} and then {more}, expected cls or mean alone. "
            f"Pass 'hf:{name}:mean' for the states below, or another model."
        )
    pooling: Pooling | None = None
    if modules or config or declared is not None:
        pooling = known.get(modes[0], "mean") if modes else "mean"
    return _Folder(pooling, limit if isinstance(limit, int) and limit > 0 else None)


def _modes(declared: Any) -> list[str]:
    """The ways of pooling that a config turns on: one name in new files, a switch each in old."""
    if isinstance(declared.get("pooling_mode"), str):
        return [declared["pooling_mode"]]
    switches = [key.removeprefix("pooling_mode_") for key, on in declared.items() if on is True]
    return [mode for mode in switches if mode != "include_prompt"]


def _json(name: str, file: str, *, needed: bool) -> Any:
    """A file of a folder or Hub repository, or None where it has none.

    Raises:
        ModelError: it is not JSON, or `needed` and the Hub cannot be asked whether it is there:
            to take it for absent would pool in another way without a word.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = Path(name, file)
    if not Path(name).is_dir():
        try:
            path = Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:
            if needed and try_to_load_from_cache(name, file) is not _CACHED_NO_EXIST:
                raise ModelError(
                    f"cannot tell how '{name}' pools its tokens, since its '{file}' cannot be "
                    f"fetched and may not exist. Pass 'hf:{name}:mean' or 'hf:{name}:cls'."
                ) from error
            return None
        except EntryNotFoundError:
            return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ModelError(f"'{file}' of '{name}' is not JSON ({error}). Fetch it again.") from error


def _usual(tokenizer: Any) -> Pooling:
    first = tokenizer("a")["input_ids"][:1]
    begins = tokenizer.cls_token_id is not None and first == [tokenizer.cls_token_id]
    return "cls" if begins else "mean"


def _limit(folder: _Folder, tokenizer: Any, encoder: Any) -> int:
    """Tokens that a text may have, special ones with them."""
    limits = [folder.max_tokens, tokenizer.model_max_length]
    if (positions := getattr(encoder.config, "max_position_embeddings", None)) is not None:
        table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)  # RoBERTa counts from the one after it
        limits.append(positions if padding is None else positions - padding - 1)
    return min(int(limit) for limit in limits if limit is not None and limit > 0)
