"""A `Progress` that remembers what it was told."""

from contextlib import contextmanager


class Recorder:
    """Remembers bars, steps and costs; `on_cost` may raise."""

    def __init__(self, on_cost=lambda _cost: None):
        self.bars = []
        """Title and total of each."""
        self.rows = []
        """Each step of any bar."""
        self.costs = []
        self._on_cost = on_cost

    @contextmanager
    def steps(self, title, total):
        self.bars.append((title, total))
        yield self.rows.append

    def cost(self, estimate):
        self.costs.append(estimate)
        self._on_cost(estimate)
