"""The files that people look at: report.html and pictures, of results, of texts, of concepts.

They are made from the folder alone: its summary, its arrays and the shortened prompts in
samples.json. So they can be made again without store, model and torch.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from actcache.analysis.concepts.summary import FILE as CONCEPTS
from actcache.analysis.concepts.summary import ConceptSummary, is_series, read_series
from actcache.analysis.config import SERIES_OF_ANALYSIS, SERIES_OF_BUILD, AnalyzeConfig
from actcache.analysis.files import DocumentError, typed, write_aside, write_json, write_text
from actcache.analysis.generation.folder import is_generations, open_generations
from actcache.analysis.generation.report_files import write_generation_report
from actcache.analysis.names import CAA, W2S_SHUFFLED
from actcache.analysis.report.concept_pages import plot_masses
from actcache.analysis.report.pages import pictures
from actcache.analysis.results import Results, open_results
from actcache.analysis.results_folder import REPORT, SAMPLES
from actcache.analysis.summary import Summary
from actcache.build.config import BuildConfig
from actcache.conventions import NO_PRESET, SWEEP_FIELDS
from actcache.data.concepts import ConceptSettings
from actcache.errors import ActcacheError, FormatError, MismatchError
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.analysis.report.html.samples import Samples

FORMATS = ("png", "svg", "pdf")
"""Of pictures."""

MOST_SAMPLES = 12_000
"""Test samples whose prompts are left in a results folder; a page has room for no more."""

LONGEST_PROMPT = 240
"""Characters of a prompt that are left there."""


@dataclass(frozen=True, kw_only=True)
class SampleTexts:
    """Test samples of a store as samples.json has them: what the arrays of OUT do not say."""

    n_tested: int
    """Test samples of the store, of which these are some."""

    row: tuple[int, ...]
    """Their places in the store and in the sweep."""

    id: tuple[str, ...]
    behavior: tuple[str, ...]
    variant: tuple[str, ...]
    letter: tuple[str, ...]

    text: tuple[str, ...]
    """Prompts, shortened, each once."""

    prompt: tuple[int, ...]
    """Place of each sample's prompt in `text`."""


def write_samples(out: Path, store: Store) -> None:
    """Write samples.json: the prompts of test samples, shortened."""
    from actcache.analysis.report.html.samples import shortened, spread

    tested = np.flatnonzero(store["split"] == "test")
    columns = {
        name: np.asarray(store[name], str)[tested].tolist()
        for name in ("id", "behavior", "variant", "letter", "prompt")
    }
    chosen = spread(
        list(zip(columns["behavior"], columns["variant"], strict=True)), MOST_SAMPLES
    ).tolist()
    columns = {name: [values[i] for i in chosen] for name, values in columns.items()}
    prompts = [shortened(prompt, LONGEST_PROMPT) for prompt in columns.pop("prompt")]
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    texts = SampleTexts(
        n_tested=len(tested),
        row=tuple(tested[chosen].tolist()),
        **{name: tuple(values) for name, values in columns.items()},
        text=tuple(place),
        prompt=tuple(place[prompt] for prompt in prompts),
    )
    write_json(out / SAMPLES, texts)


def write_report(folder: str | Path, *, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write report.html and the pictures of what `analyze`, `steer` or a series left.

    Reads the folder alone: no store, no model, no torch. The same folder gives the same bytes.

    Args:
        folder: OUT of analyze or of a series of concepts, or GEN of steer.
        formats: of the pictures: png, svg, pdf; several for several files each.

    Returns:
        The files that were written, report.html first.

    Raises:
        StoreNotFoundError: the folder holds none of them, or a series that was interrupted.
        FormatError: what it holds is damaged, or does not fit together.
        ActcacheError: a format is not known.
    """
    check_formats(formats)
    path = Path(folder)
    with _misfits_explained(path):
        if is_generations(path):
            return write_generation_report(open_generations(path), formats=formats)
        if is_series(path):
            return write_series_report(path, formats=formats)
        return write_results_report(open_results(path), formats=formats)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats of pictures that are not known, or none.

    Raises:
        ActcacheError: names them.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ActcacheError(
            f"format '{', '.join(unknown)}' is unknown, expected some of {', '.join(FORMATS)}. "
            "Pass them separated by commas."
        )


def write_results_report(results: Results, *, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write report.html and the pictures of a results folder."""
    from actcache.analysis.report.html.results_page import results_page

    out, summary = results.path, results.summary
    concepts = ConceptSummary.read(out) if (out / CONCEPTS).is_file() else None
    page = results_page(
        summary,
        samples=_samples(results),
        choices=_choices(results),
        concepts=concepts,
        commands=_commands(summary, out),
        again=f"actcache report {shlex.quote(str(out))}",
    )
    write_text(out / REPORT, page)
    drawn = {**pictures(summary, out), **_concept_pictures(concepts)}
    return [out / REPORT, *_draw(out, drawn, formats)]


def write_series_report(out: Path, *, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write report.html and the picture of a series of concepts."""
    from actcache.analysis.report.html.series_page import series_page

    settings, summary = read_series(out)
    page = series_page(
        summary,
        settings=settings,
        commands=[_series_command(settings, out)],
        again=f"actcache report {shlex.quote(str(out))}",
    )
    write_text(out / REPORT, page)
    return [out / REPORT, *_draw(out, _concept_pictures(summary), formats)]


def _concept_pictures(concepts: ConceptSummary | None) -> dict[str, Callable[[Path], None]]:
    if concepts is None or not concepts.concepts:
        return {}
    return {"concepts.png": partial(plot_masses, summary=concepts)}


def _draw(
    out: Path, pictures: Mapping[str, Callable[[Path], None]], formats: Sequence[str]
) -> list[Path]:
    """Draw each picture in each format."""
    written = []
    for name, draw in pictures.items():
        for form in formats:
            path = (out / name).with_suffix(f".{form}")
            write_aside(path, draw)
            written.append(path)
    return written


def _samples(results: Results) -> "Samples | None":
    """The test samples of samples.json with their numbers, if the folder has a sweep."""
    from actcache.analysis.report.html.samples import Samples

    path = results.path / SAMPLES
    if not path.is_file():
        return None
    texts = _read_texts(path)
    sweep, rows = results.sweep, np.array(texts.row, np.int64)
    inside = bool(((rows >= 0) & (rows < sweep.n)).all())
    if not inside or sweep.ids[rows].tolist() != list(texts.id):
        raise MismatchError(
            f"'{path}' has other samples than the sweep beside it, expected the same. Run analyze "
            "again."
        )
    swept = sweep.rows(sweep.main_set)[rows]
    rows = rows[swept]
    predicted = plane = None
    if (scores := results.summary.predictors) is not None:
        arrays = _arrays(results.path / "predictors.npz")
        if scores.plane is not None:
            plane = arrays["plane"][rows]
        if CAA in scores.sets and scores.sets[CAA].primary:
            predicted = arrays[f"{CAA}/{scores.sets[CAA].primary}/layer"][0, rows]

    def taken(values: Sequence[str]) -> list[str]:
        return [value for value, is_swept in zip(values, swept, strict=True) if is_swept]

    return Samples(
        id=taken(texts.id),
        behavior=taken(texts.behavior),
        variant=taken(texts.variant),
        letter=taken(texts.letter),
        prompt=taken([texts.text[i] for i in texts.prompt]),
        layers=sweep.layers.tolist(),
        multipliers=sweep.multipliers.tolist(),
        slope=sweep.slopes()[rows],
        propensity=sweep.propensity[rows],
        predicted=predicted,
        plane=plane,
        n_tested=texts.n_tested,
    )


def _choices(results: Results) -> "list[dict[str, object]] | None":
    """How often each layer is a base test sample's best one, and how often it is predicted."""
    scores = results.summary.predictors
    if scores is None or CAA not in scores.sets or scores.sets[CAA].primary is None:
        return None
    arrays = _arrays(results.path / "predictors.npz")
    tested = (arrays["variant"] == "base") & (arrays["split"] == "test")
    layers = np.array(scores.layers)
    choosers = {
        "best": layers[arrays[f"{CAA}/slope"].argmax(1)][None],
        "predicted": arrays[f"{CAA}/{scores.sets[CAA].primary}/layer"],
        "shuffled": arrays[f"{CAA}/{W2S_SHUFFLED}/layer"],
    }
    return [
        {"behavior": behavior, "by": chooser, "layer": int(layer), "share": float(share)}
        for behavior in scores.behaviors
        for chooser, chosen in choosers.items()
        for layer in layers
        for share in [(chosen[:, tested & (arrays["behavior"] == behavior)] == layer).mean()]
    ]


def _commands(summary: Summary, out: Path) -> list[str]:
    """The command lines that build the store and analyze it with the same settings."""
    from actcache.analysis.report.html.facts import command_line

    store, config = summary.store, summary.config
    preset = config.preset != NO_PRESET
    words = ["analyze", shlex.quote(store.path), "-o", shlex.quote(str(out))]
    if summary.sweep_store is not None:
        words += ["--sweep-store", shlex.quote(summary.sweep_store)]
    keep = ("preset", *SWEEP_FIELDS) if preset else ()
    analyze = command_line(words, AnalyzeConfig, vars(config), keep=keep)
    if not store.build:
        return [analyze]
    build = ["build", "DATA", "-o", shlex.quote(store.path)]
    return [command_line(build, BuildConfig, store.build, keep=("model",)), analyze]


def _series_command(settings: Mapping[str, Any], out: Path) -> str:
    """The command line that repeats a series of concepts."""
    from actcache.analysis.report.html.facts import command_line, setting_words

    rows, build = settings["rows"], settings["build"]
    pools = ["STATEMENTS.txt"]
    if len(rows["pools"]) > 1:
        pools = [f"STATEMENTS_{number}.txt" for number in range(1, len(rows["pools"]) + 1)]
    of_rows = setting_words(ConceptSettings, rows["settings"], keep=("prefix",))
    words = ["concepts", "CONCEPTS.txt", "--statements", *pools, *of_rows]
    # The command declares positions with another default than build.
    words += setting_words(
        BuildConfig,
        _of(build, ("model", "positions", *SERIES_OF_BUILD)),
        keep=("model", "positions"),
    )
    words += ["-o", shlex.quote(str(out))]
    return command_line(words, AnalyzeConfig, _of(settings, SERIES_OF_ANALYSIS))


def _of(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _read_texts(path: Path) -> SampleTexts:
    try:
        texts = typed(SampleTexts, json.loads(path.read_text(encoding="utf-8")))
        for name in ("id", "behavior", "variant", "letter", "prompt"):
            if len(getattr(texts, name)) != len(texts.row):
                raise DocumentError(f".{name} has another length than .row")
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"'{path}' is not what analyze writes ({reason}), expected its samples. Run analyze "
            "again."
        ) from None
    return texts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"'{path}' is not what analyze writes ({reason}), expected its arrays. Run analyze "
            "again."
        ) from None


@contextmanager
def _misfits_explained(folder: Path) -> Iterator[None]:
    """Say in one line that the parts of a folder do not fit together."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ActcacheError):
            raise
        raise FormatError(
            f"'{folder}' holds numbers that do not fit together ({type(error).__name__}: {error}), "
            "expected what analyze or steer writes. Run that command again with --overwrite."
        ) from error
