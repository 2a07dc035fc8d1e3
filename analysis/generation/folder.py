"""The folder GEN of generated texts: written line by line, resumed, opened.

`configurations.json` is written first and says what the texts are of; `generations.jsonl` is only
ever appended to; `summary.json` is written last and marks the folder complete.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from actcache.analysis.files import DocumentError, plain, typed, write_json
from actcache.analysis.generation.summary import GenerationSummary
from actcache.analysis.generation.texts import Configuration, GeneratedText
from actcache.errors import ActcacheError, FormatError, StoreExistsError, StoreNotFoundError
from actcache.identity import require_same
from actcache.store.storage.atomic import os_errors_explained, remove, sync_path
from actcache.store.storage.local import LocalStorage
from actcache.store.writing.partial import require_outside_stores

TEXTS, CONFIGURATIONS, SUMMARY = "generations.jsonl", "configurations.json", "summary.json"
TABLES, PICTURE, STEERING = "tables.md", "curve.png", "steering.safetensors"
REPORT, PROMPTS = "report.html", "prompts.json"
STEERINGS = "steerings"
"""Folder of the chosen steering of each behavior, where there are several."""

OURS = (
    *(SUMMARY, TABLES, REPORT, PICTURE, "curve.svg", "curve.pdf", PROMPTS),
    *(STEERING, STEERINGS, "config.toml", CONFIGURATIONS, TEXTS),
)
"""Everything in GEN, in the order in which it is removed."""

FORMAT = 1
"""Of configurations.json."""

Key = tuple[str, str, int]
"""A text: digest of its configuration, id of its row, number of its sample."""


@dataclass(frozen=True)
class Generations:
    """What `steer` left in a folder; each part is read when it is asked for."""

    path: Path

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / SUMMARY).is_file()

    @cached_property
    def summary(self) -> GenerationSummary:
        """Every number of the tables."""
        if not self.complete:
            raise StoreNotFoundError(
                f"'{self.path}' has no {SUMMARY}: its run was interrupted. Run the same steer "
                "command with --resume."
            )
        return GenerationSummary.read(self.path / SUMMARY)

    @cached_property
    def configurations(self) -> dict[str, Configuration]:
        """What wrote the texts, by digest."""
        return {
            digest: typed(Configuration, document)
            for digest, document in _read_head(self.path)["configurations"].items()
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was asked for, and of which rows and model."""
        settings: dict[str, Any] = _read_head(self.path)["settings"]
        return settings

    def texts(self) -> list[GeneratedText]:
        """All texts, in the order in which they were written."""
        return _read_texts(self.path / TEXTS)[0]

    @property
    def steering_path(self) -> Path:
        """The file of the steering that was chosen, at its chosen strength."""
        path = self.path / STEERING
        if not path.is_file():
            raise StoreNotFoundError(
                f"'{self.path}' has no {STEERING}: no strength was chosen, or its run was "
                f"interrupted. Run steer with --resume, or see {TABLES} for the reason."
            )
        return path

    def __repr__(self) -> str:
        return f"Generations('{self.path}')"


def open_generations(folder: str | Path) -> Generations:
    """Open what `actcache steer` left in a folder.

    Raises:
        StoreNotFoundError: there is no finished run.
        FormatError: its summary is damaged, or something else.
    """
    generations = Generations(Path(folder))
    if not is_generations(generations.path):
        raise StoreNotFoundError(
            f"no generated texts at '{folder}'. Make some with: actcache steer OUT -o {folder}"
        )
    _ = generations.summary  # refuse now what cannot be read
    return generations


def is_generations(folder: Path) -> bool:
    """Whether a folder was written by `steer`, finished or not."""
    return (folder / CONFIGURATIONS).is_file()


def remove_generations(folder: Path) -> None:
    """Remove what `steer` left in a folder, and nothing else."""
    for name in OURS:
        remove(folder / name)


def require_writable(
    folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Refuse a folder that cannot take a run with these settings; nothing is changed.

    Raises:
        StoreExistsError: it holds texts, and neither `resume` nor `overwrite` was asked for; or
            files that are not ours; or is inside a store.
        MismatchError: its texts are of other settings, rows or another model; names the field.
    """
    require_outside_stores(folder / TABLES)
    if folder.exists() and not folder.is_dir():
        raise StoreExistsError(f"'{folder}' is a file, expected a folder. Choose another path.")
    if overwrite or not folder.exists():
        return
    if not is_generations(folder):
        if names := sorted(path.name for path in folder.iterdir()):
            raise StoreExistsError(
                f"'{folder}' holds {names[0]!r} and no generated texts, expected an empty folder. "
                "Choose another path with -o."
            )
        return
    require_same(
        plain(settings),
        _read_head(folder)["settings"],
        what=f"the settings of this run and of the texts in '{folder}'",
        remedy="Choose another folder with -o, or pass --overwrite.",
    )
    if not resume:
        raise StoreExistsError(
            f"'{folder}' holds texts of this very run. Pass --resume to finish it, --overwrite to "
            "start over, or choose another path."
        )


class TextLog:
    """generations.jsonl, open for appending. What `append` was given is durable when it returns."""

    def __init__(self, path: Path):
        self.texts, end = _read_texts(path) if path.exists() else ([], 0)
        self.written: set[Key] = {key_of(text) for text in self.texts}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._file, end)  # a last line that a kill tore
        os.lseek(self._file, end, os.SEEK_SET)
        sync_path(path.parent)

    def append(self, texts: Sequence[GeneratedText]) -> None:
        """Write texts, a line each, and sync."""
        lines = (json.dumps(plain(text), ensure_ascii=False, allow_nan=False) for text in texts)
        rest = memoryview("".join(f"{line}\n" for line in lines).encode())
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self.texts += texts
        self.written |= {key_of(text) for text in texts}

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def key_of(text: GeneratedText) -> Key:
    """What a text is found by when a run is resumed."""
    return text.configuration, text.id, text.sample


@contextmanager
def writing(
    folder: Path,
    settings: Mapping[str, Any],
    configurations: Mapping[str, Configuration],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[TextLog]:
    """Lock a folder and open its log; other writers are refused until the block ends.

    Raises:
        ActcacheError: see `require_writable`; or another process writes there.
    """
    require_writable(folder, settings, resume=resume, overwrite=overwrite)
    with os_errors_explained(f"'{folder}' cannot be written"):
        release = LocalStorage(folder).lock()
        try:
            # Again: another process may have been here before the lock.
            require_writable(folder, settings, resume=resume, overwrite=overwrite)
            if overwrite:
                remove_generations(folder)
            head = {
                "format": FORMAT,
                "settings": settings,
                "configurations": configurations,
            }
            if not is_generations(folder):
                (folder / TEXTS).unlink(missing_ok=True)
                write_json(folder / CONFIGURATIONS, head)
            log = TextLog(folder / TEXTS)
            try:
                yield log
            finally:
                log.close()
        finally:
            release()


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / CONFIGURATIONS
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise DocumentError(f"expected format {FORMAT}")
        if not all(isinstance(head.get(name), dict) for name in ("settings", "configurations")):
            raise DocumentError("expected settings and configurations")
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"'{path}' is not what steer writes ({reason}), expected its configurations. Choose "
            "another folder with -o, or run steer with --overwrite."
        ) from None
    return head


def _read_texts(path: Path) -> tuple[list[GeneratedText], int]:
    """All whole lines, and where they end; a last line without its end is left out."""
    if not path.exists():
        raise ActcacheError(f"'{path}' is missing, expected texts. Run steer with --overwrite.")
    raw = path.read_bytes()
    end = raw.rfind(b"\n") + 1
    texts = []
    for number, line in enumerate(raw[:end].splitlines(), start=1):
        try:
            texts.append(typed(GeneratedText, json.loads(line)))
        except (ValueError, RecursionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise FormatError(
                f"'{path}' line {number} is no generated text ({reason}), expected what steer "
                "wrote. Run steer with --overwrite, or restore the file."
            ) from None
    return texts, end
