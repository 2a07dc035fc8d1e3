"""A `map` that runs units as the workers of a cluster would: elsewhere, and in any order."""

import pickle

import numpy as np


class ShuffledMap:
    """Runs units last first or in a random order; function, units and results are pickled."""

    def __init__(self, seed=0):
        self._rng = np.random.default_rng(seed)
        self.orders: list[list[int]] = []
        """The order in which the units of each call ran."""

    def __call__(self, function, units):
        sent = [pickle.dumps((function, unit)) for unit in units]
        order = self._rng.permutation(len(sent)).tolist()
        if order == sorted(order):
            order.reverse()
        self.orders.append(order)
        results = {}
        for place in order:
            run, unit = pickle.loads(sent[place])
            results[place] = pickle.dumps(run(unit))
        for place in range(len(sent)):
            yield pickle.loads(results[place])
