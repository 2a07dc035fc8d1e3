"""Embeddings of a BERT or a sentence encoder that transformers loads and runs here.

It does what sentence-transformers does for folders of Transformer, Pooling and Normalize, and
refuses folders that need more.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actcache.encoders.base import Pooling, TextVectors
from actcache.engine.batching import plan_batches
from actcache.errors import ModelError
from actcache.hub import first_sentence

if TYPE_CHECKING:  # importing it means importing torch
    from torch import Tensor

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""

_POOLING: dict[str, Pooling] = {
    "cls_token": "cls",
    "cls": "cls",
    "mean_tokens": "mean",
    "mean": "mean",
}
"""What sentence-transformers calls the two ways of pooling, in old and in new files."""


def encode_sentences(
    texts: Sequence[str],
    *,
    model: str,
    pooling: Pooling | None = None,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    on_texts: Callable[[Sequence[str]], None] = lambda _texts: None,
) -> TextVectors:
    """Run an encoder over distinct texts in float32, batching texts of similar length.

    **Pooling**, unless it is given: that of the folder's `1_Pooling/config.json` (named by its
    `modules.json`); without one `mean` if the folder is made by sentence-transformers, whose
    default that is; else `cls` if the tokenizer begins every text with a CLS token (BERT, as in the
    W2S paper), else `mean`. The mean is over all tokens except padding, including CLS and SEP, as
    in sentence-transformers.

    **Limit**: the smallest of those of sentence-transformers' config, tokenizer and position
    embeddings. Longer texts are cut at the end, and counted. No code of the checkpoint is run, and
    the prompts that some folders define for queries are not added.

    Vectors are `[n, hidden_size]`; a text's batch changes its vector in the last digits only.
    `on_texts` receives the texts that are done.
    """
    import torch

    from actcache.engine.model import load_tokenizer, pick_device, weights_digest

    torch_device = pick_device(device)
    tokenizer = load_tokenizer(model)
    folder = _read_folder(model, explicit=pooling is not None)
    encoder = _load(model)
    pooling = pooling or folder.pooling or _default_pooling(tokenizer)
    limit = _limit(folder, tokenizer, encoder)
    whole = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    cut = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    digest = weights_digest(encoder)
    encoder.to(torch_device)
    vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    with torch.inference_mode():
        for rows in plan_batches([len(ids) for ids in cut], budget=batch_tokens):
            ids, mask = _padded([cut[row] for row in rows], tokenizer.pad_token_id or 0)
            ids, mask = ids.to(torch_device), mask.to(torch_device)
            states = encoder(input_ids=ids, attention_mask=mask)[0]
            vectors[rows] = _pool(states, mask, pooling).cpu().numpy()
            on_texts([texts[row] for row in rows])
    return TextVectors(
        vectors=vectors,
        settings={
            "model": model,
            "weights_sha256": digest,
            "commit": getattr(encoder.config, "_commit_hash", None),
            "pooling": pooling,
            "max_tokens": limit,
            "dimension": vectors.shape[1],
        },
        n_new=len(texts),
        tokens=sum(map(len, cut)),
        n_truncated=sum(len(ids) > limit for ids in whole),
    )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """Token ids and mask `[b, t]`; padding on the right leaves absolute positions as they are."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


def _pool(states: "Tensor", mask: "Tensor", pooling: Pooling) -> "Tensor":
    """Pool states `[b, t, e]` to `[b, e]`."""
    if pooling == "cls":
        return states[:, 0]
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _load(name: str) -> Any:
    """Load the encoder in float32 and eval mode, without the pooler that BERT puts on top."""
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning of an unused language-model head
    try:
        encoder, loading = AutoModel.from_pretrained(
            name,
            dtype="float32",
            trust_remote_code=False,
            output_loading_info=True,
            weights_only=True,
        )
    except Exception as error:  # damaged files raise whatever they like
        raise ModelError(
            f"cannot load the encoder '{name}': {first_sentence(error)} Pass a folder with "
            "config.json, weights (model.safetensors) and tokenizer, or a Hub id that can be "
            "reached."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if encoder.config.is_encoder_decoder:
        raise ModelError(
            f"'{name}' is an encoder and a decoder ('{encoder.config.model_type}'), expected an "
            "encoder alone, such as BERT. Pass one."
        )
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"'{name}' lacks {len(missing)} of the encoder's weights ('{missing[0]}', …), which "
            "would be random. Pass a complete checkpoint."
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # not used, and random if the checkpoint has none
    return encoder.eval().requires_grad_(requires_grad=False)


class _Folder(NamedTuple):
    """What the files of sentence-transformers declare about a model."""

    pooling: Pooling | None
    max_tokens: int | None


def _read_folder(name: str, *, explicit: bool) -> _Folder:
    """Read the files; if pooling was chosen (`explicit`), what they declare of it is ignored."""
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
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    unknown = declared is not None and [mode in _POOLING for mode in modes] != [True]
    if not explicit and (others or unknown):
        raise ModelError(
            f"'{name}' pools its tokens by {modes} and then {others}, expected cls or mean alone. "
            f"Pass 'hf:{name}:mean' to pool the states before that, or another model."
        )
    pooling: Pooling | None = None
    if modules or config or declared is not None:
        pooling = _POOLING.get(modes[0], "mean") if modes else "mean"
    return _Folder(pooling, limit if isinstance(limit, int) and limit > 0 else None)


def _modes(declared: Any) -> list[str]:
    """The poolings that a config turns on: new files name one, old ones have a switch for each."""
    if isinstance(declared.get("pooling_mode"), str):
        return [declared["pooling_mode"]]
    switches = [key.removeprefix("pooling_mode_") for key, on in declared.items() if on is True]
    return [mode for mode in switches if mode != "include_prompt"]


def _json(name: str, file: str, *, needed: bool) -> Any:
    """Read a file of a folder or Hub repository; None if it does not exist.

    If it is `needed` and the Hub cannot be asked, that is an error: pooling could be another.
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


def _default_pooling(tokenizer: Any) -> Pooling:
    """`cls` for a tokenizer that begins every text with a CLS token, else `mean`."""
    first = tokenizer("a")["input_ids"][:1]
    is_cls = tokenizer.cls_token_id is not None and first == [tokenizer.cls_token_id]
    return "cls" if is_cls else "mean"


def _limit(folder: _Folder, tokenizer: Any, encoder: Any) -> int:
    """Tokens that a text may have, including special ones."""
    limits = [folder.max_tokens, tokenizer.model_max_length]
    if (positions := getattr(encoder.config, "max_position_embeddings", None)) is not None:
        table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)  # RoBERTa counts positions from the next one
        limits.append(positions if padding is None else positions - padding - 1)
    return min(int(limit) for limit in limits if limit is not None and limit > 0)
