"""Concept after concept: each built, fitted and let go of, so that hundreds leave little on disk.

An interrupted series goes on at the concept it was at. Residuals of a concept are kept while it is
fitted, and the first concept's to the end: prompts without a concept are copied from there.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.analysis.concepts.stage import fit_concepts
from actcache.analysis.concepts.summary import FILE, SERIES, ConceptSummary
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.files import plain, write_json, write_tensors, write_text
from actcache.analysis.names import slugs
from actcache.build.config import BuildConfig
from actcache.build.pipeline import plan_store
from actcache.conventions import ATTENTION, ATTENTION_CONTROL, Site
from actcache.data.concepts import WITH, WITHOUT, ConceptRows
from actcache.errors import ActcacheError, MismatchError
from actcache.identity import require_same
from actcache.progress import SILENT, Progress
from actcache.store.layout import partial_folder
from actcache.store.storage.atomic import lock_folder, make_folder, remove
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.engine.model import LanguageModel

SITES: Sequence[Site] = ("resid_post", ATTENTION, ATTENTION_CONTROL)

log = logging.getLogger("actcache")


@dataclass(frozen=True, kw_only=True)
class _Series:
    out: Path
    rows: ConceptRows
    build: BuildConfig
    config: AnalyzeConfig
    keep: bool

    @property
    def names(self) -> dict[str, str]:
        """Concept to the name of its files."""
        return slugs(self.rows.concepts)

    def store(self, concept: str) -> Path:
        """Where its residuals are."""
        return self.out / "stores" / f"{self.names[concept]}.zarr"

    def directions(self, concept: str) -> Path:
        """Where its directions are."""
        return self.out / "directions" / f"{self.names[concept]}.safetensors"

    def scores(self, concept: str) -> Path:
        """The folder of its concepts.json, which is written last."""
        return self.out / "scores" / self.names[concept]


def run_series(
    rows: ConceptRows,
    out: str | Path,
    *,
    build: BuildConfig,
    config: AnalyzeConfig,
    keep: bool = False,
    model: "LanguageModel | None" = None,
    progress: Progress = SILENT,
) -> ConceptSummary:
    """Build and fit one concept after the other; leave directions and scores in a folder.

    Args:
        rows: of all concepts.
        out: `directions/<concept>.safetensors`, `scores/<concept>/concepts.json`, and in the end
            `concepts.json` of all. A folder of an interrupted series is gone on with.
        build: the model and its positions; sites are what the stage reads.
        config: methods, draws and shuffles.
        keep: leave the stores of residuals in `stores/`.
        model: already loaded; by default the one that `build` names.
        progress: shows how many concepts are done.

    Raises:
        MismatchError: the folder holds a series of other settings or rows.
        ActcacheError: another run is writing it; or as `build_store` and `fit_concepts`.
    """
    series = _Series(
        out=Path(out), rows=rows, build=replace(build, sites=SITES), config=config, keep=keep
    )
    with _locked(series.out):
        _require_same_settings(series)
        concepts = list(rows.concepts)
        with progress.steps("concepts", len(concepts)) as advance:
            for concept in concepts:
                if not (series.scores(concept) / FILE).exists():
                    model = _fit_one(series, concept, first=concepts[0], model=model)
                advance(1)
        summaries = [ConceptSummary.read(series.scores(concept)) for concept in concepts]
        scores = {
            name: scored for summary in summaries for name, scored in summary.concepts.items()
        }
        whole = replace(summaries[0], concepts=scores)
        whole.write(series.out)
        if not keep and series.store(concepts[0]).exists():
            remove(series.store(concepts[0]))
    return whole


def _fit_one(
    series: _Series, concept: str, *, first: str, model: "LanguageModel | None"
) -> "LanguageModel":
    from actcache.build.run import load_planned

    model = model or load_planned(series.build)
    store = _built(series, concept, first=first, model=model)
    summary, tensors = fit_concepts(
        store, labels=(WITH, WITHOUT), config=series.config, names=[concept]
    )
    recorded = store.provenance["model"]
    about = {
        "layer": "output of the decoder block, from 0",
        "weights_sha256": str(recorded["weights_sha256"]),
        "model": str(recorded["name"]),
    }
    make_folder(series.directions(concept).parent)
    write_tensors(series.directions(concept), tensors, about=about)
    make_folder(series.scores(concept))
    summary.write(series.scores(concept))
    store.close()
    if not series.keep and concept != first:
        remove(series.store(concept))
    return model


def _built(series: _Series, concept: str, *, first: str, model: "LanguageModel") -> Store:
    """The store of one concept: made, gone on with, or as it is."""
    from actcache.build.run import run_build
    from actcache.store.store import open_store

    path = series.store(concept)
    if path.exists():
        return open_store(path, check=True)
    rows = [*series.rows.of_concept(concept), *series.rows.pools_alone()]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    make_folder(path.parent)
    file = path.with_suffix(".jsonl")
    write_text(file, lines)
    plan = plan_store(file, series.build)
    for sentence in plan.notes:
        if sentence.startswith("warning"):
            log.warning("actcache: %s: %s", concept, sentence)
    shared = series.store(first)
    store = run_build(
        plan,
        path,
        resume=partial_folder(path).exists(),
        reuse=[shared] if concept != first and shared.exists() else [],
        model=model,
    )
    file.unlink()
    return store


def _require_same_settings(series: _Series) -> None:
    settings: dict[str, Any] = plain(
        {
            "rows": series.rows,
            "build": series.build.recorded(),
            "methods": series.config.methods,
            "shuffles": series.config.shuffles,
            "draws": series.config.draws,
            "seed": series.config.seed,
        }
    )
    path = series.out / SERIES
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in series.out.iterdir()):
            raise MismatchError(
                f"'{series.out}' holds other files, expected an empty folder or a series of "
                "concepts. Choose another with -o."
            )
        write_json(path, settings)
        return
    require_same(
        settings,
        json.loads(path.read_text(encoding="utf-8")),
        what=f"this series of concepts and the one in '{series.out}'",
        remedy="Choose another folder with -o, or the settings it was begun with.",
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    make_folder(out.absolute())
    try:
        unlock = lock_folder(out)
    except BlockingIOError:
        raise ActcacheError(
            f"another run is writing to '{out}', expected one at a time. Wait for it, or choose "
            "another folder with -o."
        ) from None
    try:
        yield
    finally:
        unlock()
