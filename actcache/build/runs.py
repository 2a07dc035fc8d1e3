"""Runs: consecutive shards of a store that are computed together, and alike wherever that is.

Rows share passes with rows of their run alone, under a budget of the run's own. So a run's values
depend on nothing that happens in another: not on an interruption, a lack of memory, or the machine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from actcache.build.plan import BuildPlan
from actcache.build.reuse import Reusable, first_equal_rows
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import DTYPES, LanguageModel
from actcache.engine.self_check import CaptureFunction
from actcache.engine.tree_capture import capture_head
from actcache.prompts.beginnings import group_by_beginning
from actcache.prompts.render import Rendered
from actcache.store.schema import RowArray
from actcache.store.store import Store

RUN_ROWS = 512
"""Rows of a run, about: enough of similar length that passes hold little padding."""

RUN_BYTES = 3_000_000_000
"""Bytes of a run's values, at most: it is held in memory whole, and so is the one being written.
512 rows of 80 layers of width 8192 in bfloat16 at four positions are fewer."""

Blocks = dict[str, np.ndarray]
"""Values of one shard: for each row array `[n, layer, width]` in its stored dtype."""

ReadEarlier = Callable[[Int64[np.ndarray, " k"]], Mapping[str, np.ndarray]]
"""Reads rows of earlier runs, by their numbers: for each row array `[k, layer, width]`."""


def shards_of_a_run(
    arrays: Sequence[RowArray],
    shard_rows: int,
    *,
    run_rows: int = RUN_ROWS,
    run_bytes: int = RUN_BYTES,
) -> int:
    """Count the shards of a run: about `run_rows` rows, but at most `run_bytes`, and at least 1."""
    a_shard = shard_rows * sum(array.row_bytes for array in arrays)
    return max(1, min(-(-run_rows // shard_rows), run_bytes // a_shard))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All runs of a build, in order."""

    rendered: Sequence[Rendered]
    """The tokens of the store's rows."""

    costs: Sequence[int]
    """Tokens of each row in its pass, without padding."""

    arrays: Sequence[RowArray]
    reading: Mapping[str, Any]
    """What is read of each row: arguments of `capture`."""

    batch_tokens: int
    shares: bool
    """Whether the engine can run the beginning that rows share once."""

    reused: Reusable | None
    first: Int64[np.ndarray, " n"]
    """For each row the first one with the same tokens, which is run for both."""

    shard_rows: int
    n_shards: int
    """Shards of a run; the last run may have fewer."""

    @classmethod
    def of(
        cls,
        plan: BuildPlan,
        arrays: Sequence[RowArray],
        *,
        shard_rows: int,
        reused: Reusable | None = None,
        run_rows: int = RUN_ROWS,
    ) -> "Runs":
        """Cut a build into runs.

        Args:
            plan: from `plan_build`.
            arrays: the row arrays of the store.
            shard_rows: rows of a shard.
            reused: rows that are copied from other stores.
            run_rows: rows of a run, about; see `shards_of_a_run`.
        """
        return cls(
            rendered=plan.rendered,
            costs=plan.costs,
            arrays=arrays,
            reading=plan.reading,
            batch_tokens=plan.config.batch_tokens,
            shares=plan.shares_beginnings,
            reused=reused,
            first=first_equal_rows(plan.rendered, arrays),
            shard_rows=shard_rows,
            n_shards=shards_of_a_run(arrays, shard_rows, run_rows=run_rows),
        )

    def __len__(self) -> int:
        return -(-len(self.rendered) // self._n_rows)

    @property
    def _n_rows(self) -> int:
        return self.shard_rows * self.n_shards

    def rows(self, run: int) -> range:
        """The rows of a run."""
        return range(run * self._n_rows, min((run + 1) * self._n_rows, len(self.rendered)))

    def run_of(self, row: int) -> int:
        """The run that a row belongs to."""
        return row // self._n_rows

    def left(self, n_committed: int) -> range:
        """List the runs of which rows are missing where so many are committed."""
        done = n_committed == len(self.rendered)
        return range(len(self) if done else self.run_of(n_committed), len(self))

    def needs(self, run: int) -> set[int]:
        """The earlier runs that hold rows which this one repeats: they must be stored first."""
        return {self.run_of(row) for row in self[run].earlier.tolist()}

    def __getitem__(self, run: int) -> "Run":
        """Take what computing one run needs, besides the model."""
        if not 0 <= run < len(self):
            raise IndexError(f"run {run} of {len(self)}")
        rows = self.rows(run)
        part = slice(rows.start, rows.stop)
        return Run(
            rows=rows,
            rendered=self.rendered[part],
            costs=self.costs[part],
            arrays=self.arrays,
            reading=self.reading,
            batch_tokens=self.batch_tokens,
            shares=self.shares,
            reused=None if self.reused is None else self.reused.part(part),
            first=self.first[part],
            shard_rows=self.shard_rows,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: all that computing it needs, besides the model. It can be pickled.

    Fields that `Runs` has as well hold their part for `rows`; rows have their numbers in the store.
    """

    rows: range
    rendered: Sequence[Rendered]
    costs: Sequence[int]
    arrays: Sequence[RowArray]
    reading: Mapping[str, Any]
    batch_tokens: int
    shares: bool
    reused: Reusable | None
    first: Int64[np.ndarray, " n"]
    shard_rows: int

    @cached_property
    def _to_run(self) -> Int64[np.ndarray, " _"]:
        """Places in the run of the rows that are run: not reused, and no repeats."""
        return np.flatnonzero(~self._is_reused & (self.first == self.rows))

    @cached_property
    def _repeated(self) -> Int64[np.ndarray, " _"]:
        """Places in the run of the rows that repeat an earlier row."""
        return np.flatnonzero(~self._is_reused & (self.first < self.rows))

    @cached_property
    def _is_reused(self) -> Bool[np.ndarray, " n"]:
        n = len(self.rows)
        return np.zeros(n, bool) if self.reused is None else np.greater_equal(self.reused.store, 0)

    @property
    def earlier(self) -> Int64[np.ndarray, " _"]:
        """The rows of earlier runs that this one repeats, each once."""
        sources = self.first[self._repeated]
        return np.unique(sources[sources < self.rows.start])

    def compute(
        self,
        model: LanguageModel,
        *,
        read: CaptureFunction,
        read_earlier: ReadEarlier,
        budget: Budget | None = None,
    ) -> Iterator[tuple[range, Blocks]]:
        """Compute the run, and give its shards in order: their rows, and blocks to commit.

        All of it is in memory when the first shard is given; what is given is not held any longer.

        Args:
            model: the model.
            read: reads the residuals of a batch.
            read_earlier: reads the rows of earlier runs that this one repeats.
            budget: of an earlier run, whose warnings are not repeated; this run begins a new one.

        Raises:
            ModelError: a single row does not fit into the device's memory.
        """
        shards = [
            self.rows[start : start + self.shard_rows]
            for start in range(0, len(self.rows), self.shard_rows)
        ]
        # Layer-major, as a shard lies on disk, so that writing it copies nothing.
        blocks = [
            {
                array.name: np.empty((array.n_layers, len(rows), array.width), array.stored)
                for array in self.arrays
            }
            for rows in shards
        ]
        to_run = self._to_run
        run_batches(
            [self.costs[place] for place in to_run],
            budget=Budget(self.batch_tokens) if budget is None else budget.renewed(),
            run=partial(self._run_batch, model, read, blocks),
            heads=self._heads(model),
        )
        if self.reused is not None:
            for rows, block in zip(shards, blocks, strict=True):
                self.reused.fill(block, rows.start - self.rows.start)
        self._copy_repeats(blocks, read_earlier)
        blocks.reverse()
        for rows in shards:
            yield rows, {name: block.swapaxes(0, 1) for name, block in blocks.pop().items()}

    def _heads(self, model: LanguageModel) -> list[tuple[int, ...]] | None:
        """What the rows to run may share; None where nothing would be run once."""
        if not (self.shares and model.can_share_beginnings):
            return None
        positions = self.reading["positions"]
        heads = [capture_head(self.rendered[i], positions=positions) for i in self._to_run]
        return heads if group_by_beginning(heads) else None

    def _run_batch(
        self,
        model: LanguageModel,
        read: CaptureFunction,
        blocks: Sequence[Blocks],
        batch: Int64[np.ndarray, " _"],
    ) -> None:
        """Run some of the rows to run, into the `blocks` of their shards."""
        places = self._to_run[batch]
        residuals = read(model, [self.rendered[place] for place in places], **self.reading)
        positions = list(self.reading["positions"])
        shard_of, place = np.divmod(places, self.shard_rows)
        for array in self.arrays:
            site, position = array.name.split("/")
            values = as_stored(residuals[site][:, :, positions.index(position)], array.dtype)
            for shard in np.unique(shard_of):
                chosen = shard_of == shard
                block = blocks[shard][array.name]
                block[:, place[chosen]] = values[chosen].swapaxes(0, 1)

    def _copy_repeats(self, blocks: Sequence[Blocks], read_earlier: ReadEarlier) -> None:
        """Copy rows that repeat one of this run, or of an earlier one."""
        sources = self.first[self._repeated]
        shard_of, place = np.divmod(self._repeated, self.shard_rows)
        for shard in np.unique(shard_of[sources < self.rows.start]):
            chosen = (shard_of == shard) & (sources < self.rows.start)
            earlier, row_of = np.unique(sources[chosen], return_inverse=True)
            for name, values in read_earlier(earlier).items():
                blocks[shard][name][:, place[chosen]] = values[row_of].swapaxes(0, 1)
        for i in np.flatnonzero(sources >= self.rows.start):
            from_shard, from_place = divmod(sources[i] - self.rows.start, self.shard_rows)
            for name, block in blocks[shard_of[i]].items():
                block[:, place[i]] = blocks[from_shard][name][:, from_place]


def read_rows(store: Store, rows: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
    """Read rows of every row array as they are stored: a `ReadEarlier` of a store."""
    return {array.name: store.array(array.name).stored[rows] for array in store.row_arrays}


def as_stored(residuals: Tensor, dtype: str) -> np.ndarray:
    """Convert a tensor to the store's dtype in NumPy; bfloat16 as its bits, uint16."""
    converted = residuals.to(DTYPES[dtype]).cpu()
    return converted.view(torch.uint16).numpy() if dtype == "bfloat16" else converted.numpy()
