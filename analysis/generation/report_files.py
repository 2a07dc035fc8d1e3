"""report.html and the picture of a folder of texts, made from the folder alone."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from actcache.analysis.files import write_aside, write_json, write_text
from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.folder import PICTURE, PROMPTS, REPORT, Generations
from actcache.analysis.generation.texts import UNSTEERED, UNSTEERED_AGAIN, GeneratedText
from actcache.analysis.names import STEERING_METHODS, strategy_label
from actcache.analysis.report.generation_plots import plot_generation
from actcache.analysis.report.generation_tables import strength_label
from actcache.errors import FormatError

LONGEST_PROMPT = 600
"""Characters of a prompt that are left in prompts.json."""


def write_prompts(folder: Path, prompts: dict[str, str]) -> None:
    """Write prompts.json: the prompts by the id of their row, shortened."""
    from actcache.analysis.report.html.samples import shortened

    short = {name: shortened(prompt, LONGEST_PROMPT) for name, prompt in prompts.items()}
    write_json(folder / PROMPTS, short)


def write_generation_report(
    generations: Generations,
    *,
    texts: Sequence[GeneratedText] | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write report.html and the picture of a finished run.

    Args:
        generations: the folder.
        texts: its texts, where they are at hand; by default they are read.
        formats: of the picture; several for several files.

    Returns:
        The files that were written.
    """
    from actcache.analysis.report.html.facts import command_line
    from actcache.analysis.report.html.generation_page import generation_page

    folder, summary, settings = generations.path, generations.summary, generations.settings
    words = ["steer", shlex.quote(summary.source), "-o", shlex.quote(str(folder))]
    page = generation_page(
        summary,
        list(_text_rows(generations, generations.texts() if texts is None else texts)),
        settings=settings,
        commands=[command_line(words, SteerConfig, settings.get("config", {}))],
        again=f"actcache report {shlex.quote(str(folder))}",
    )
    write_text(folder / REPORT, page)
    written = [folder / REPORT]
    if any(curve for scores in summary.methods for curve in scores.curves.values()):
        for form in formats:
            path = (folder / PICTURE).with_suffix(f".{form}")
            write_aside(path, lambda aside: plot_generation(aside, summary))
            written.append(path)
    return written


def _text_rows(generations: Generations, texts: Sequence[GeneratedText]) -> "Iterator[Any]":
    """Texts as the page shows them, those that were written twice once."""
    from actcache.analysis.report.html.generation_page import TextRow

    prompts, configurations = _read_prompts(generations.path), generations.configurations
    for text in texts:
        about = configurations[text.configuration]
        if about.method == UNSTEERED_AGAIN:
            continue
        label = STEERING_METHODS.get(about.method, about.method)
        selection = strategy_label(about.selection) if about.selection else ""
        unsteered = about.method == UNSTEERED or about.strength is None
        yield TextRow(
            id=text.id,
            behavior=text.behavior,
            split=text.split,
            prompt=prompts.get(text.id, ""),
            method=", ".join(filter(None, (label, selection))),
            strength="" if unsteered else strength_label(about.strength or 0.0, about.unit),
            sample=text.sample,
            text=text.text,
            target=text.target,
            nll_unsteered=text.nll_unsteered,
        )


def _read_prompts(folder: Path) -> dict[str, str]:
    """The prompts by row; none in a folder of an earlier version."""
    path = folder / PROMPTS
    if not path.is_file():
        return {}
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        prompts = None
    if not isinstance(prompts, dict) or not all(isinstance(x, str) for x in prompts.values()):
        raise FormatError(
            f"'{path}' is not what steer writes, expected prompts by id. Run steer with "
            "--overwrite, or remove the file: the report then shows texts without prompts."
        )
    return prompts
