"""What do fitted directions cost beside the same methods with d × d matrices, in time and memory?

One layer, 320 train and 80 validation rows. The rival of RFM is the published loop, written out
(pdavar/attention_guided_steering, rfm.py): M dense, LOBPCG, float32; and the same in float64. Rivals
of the linear methods are scikit-learn's on the rows as they are, with the same settings; of LDA, one
setting is run and multiplied. Ours always counts the factorisation, which one layer needs once.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from actcache.analysis.directions.fitting import linear, rfm
from actcache.analysis.directions.fitting.choice import LayerFit, LayerLabels
from actcache.analysis.directions.fitting.methods import METHODS
from actcache.analysis.directions.fitting.row_space import RowSpace, row_space
from benchmarks.support.one_stage import megabytes, peak_resident
from benchmarks.support.turns import arguments, in_turns, ratio, report

TRAIN, VALIDATION = 320, 80
MEMORY_OF = ("ours", "dense float32", "dense float64")


class Layer:
    """Rows of one layer: a common mean, 64 latents of falling size, noise, a planted direction."""

    def __init__(self, d: int) -> None:
        rng = np.random.default_rng(0)
        n = TRAIN + VALIDATION
        y = np.arange(n) % 2.0
        latents = rng.standard_normal((n, 64)) / np.sqrt(np.arange(1, 65))
        rows = 5 * rng.standard_normal(d) + latents @ rng.standard_normal((64, d))
        rows += 0.3 * rng.standard_normal((n, d)) + 0.3 * y[:, None] * rng.standard_normal(d)
        self.train, self.validation = np.split(rows.astype(np.float32), [TRAIN])
        self.labels = LayerLabels(
            train=y[:TRAIN],
            validation=y[TRAIN:],
            pairs=np.arange(TRAIN).reshape(-1, 2)[:, ::-1],
        )
        self.unit = self._unit(self.train), self._unit(self.validation)

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        mean = (self.train / np.linalg.norm(self.train, axis=1, keepdims=True)).mean(0)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True) - mean)

    def fit_in_row_space(self, method: str) -> tuple[RowSpace, LayerFit]:
        """Factorise the layer and fit."""
        space = row_space(self.train, self.validation)
        return space, METHODS[method]([space], [self.labels])[0]


def dense(
    layer: Layer, dtype: torch.dtype, *, iterations: int = 10, settings: int = 6
) -> tuple[float, np.ndarray]:
    """Run the published loop; return the best validation correlation and its direction."""
    best, direction = -1.0, np.zeros(0)
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor(layer.labels.train, dtype=dtype)[:, None]
    for again, width in rfm.SETTINGS[:settings]:
        x, v = (torch.tensor(rows, dtype=dtype) for rows in layer.unit)
        if again:
            x, v = (rows / rows.norm(dim=1, keepdim=True) for rows in (x, v))
        m = torch.eye(x.shape[1], dtype=dtype)
        start = torch.randn(x.shape[1], 1, generator=generator, dtype=dtype)
        for iteration in range(iterations):
            xm = x @ m
            lengths = (xm * x).sum(1)
            distance = lengths[:, None] - 2 * xm @ x.T + lengths[None]
            distance = distance.clamp_(min=0).sqrt_()
            kernel = torch.exp(-distance / width)
            a = torch.linalg.solve(kernel + 1e-3 * torch.eye(len(x), dtype=dtype), y)[:, 0]
            u = torch.lobpcg(m, k=1, X=start)[1]
            score = abs(np.corrcoef((v @ u)[:, 0], layer.labels.validation)[0, 1])
            if iteration and score > best:  # M = I has no eigenvector of its own
                best, direction = score, u[:, 0].double().numpy()
            weights = torch.where(distance < 1e-10, 0, kernel / distance)
            gradients = (a[:, None] * weights).T @ xm - (a @ weights)[:, None] * xm
            gradients -= gradients.mean(0)
            m = gradients.T @ gradients
            m /= m.max()
    return best, direction


def rivals(layer: Layer) -> dict[str, tuple[Callable[[], Any], float]]:
    """Each linear method by scikit-learn in d coordinates, and by how much its time is multiplied."""
    train, y = layer.train.astype(np.float64), layer.labels.train
    unit = layer.unit[0].astype(np.float64)
    pairs = layer.labels.pairs

    def ridge() -> np.ndarray:
        return np.stack([Ridge(alpha=p).fit(unit, y).coef_ for p in linear.RIDGE_PENALTIES])

    def logistic() -> np.ndarray:
        models = [LogisticRegression(C=c, tol=1e-8, max_iter=10_000) for c in linear.LOGISTIC_C]
        return np.concatenate([model.fit(unit, y).coef_ for model in models])

    def lda() -> np.ndarray:
        shrinkage = linear.LDA_SHRINKAGES[2]
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        return np.asarray(model.fit(train, y).coef_)

    def pca() -> np.ndarray:
        differences = train[pairs[:, 0]] - train[pairs[:, 1]]
        both = np.concatenate([differences, -differences])  # about zero, as pairs are
        return np.asarray(PCA(1, svd_solver="full").fit(both).components_)

    return {
        "ridge": (ridge, 1),
        "logistic": (logistic, 1),
        "lda": (lda, len(linear.LDA_SHRINKAGES)),
        "pca": (pca, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--d-model", type=int, default=1024, help="default 1024")
    parser.add_argument("--float64", action="store_true", help="RFM's dense float64 form too")
    parser.add_argument("--no-linear", action="store_true", help="RFM alone")
    parser.add_argument("--quick", action="store_true", help="a narrow layer: does it run at all?")
    parser.add_argument("--memory-of", choices=MEMORY_OF, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.d_model, args.repeats = 64, 1
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    if args.memory_of:
        print(json.dumps(extra_memory(args.memory_of, args.d_model)))
        return
    layer = Layer(args.d_model)
    figures = {**of_rfm(layer, args), **({} if args.no_linear else of_linear(layer, args.repeats))}
    report("fitting", figures, about={"d_model": args.d_model, "repeats": args.repeats})


def of_rfm(layer: Layer, args: argparse.Namespace) -> dict[str, Any]:
    d = layer.train.shape[1]
    forms = {"dense float32": torch.float32}
    if args.float64:
        forms["dense float64"] = torch.float64
    results: dict[str, Any] = {}

    def work(name: str) -> Callable[[], None]:
        def run() -> None:
            results[name] = (
                dense(layer, forms[name]) if name in forms else layer.fit_in_row_space("rfm")
            )

        return run

    variants = {name: work(name) for name in ("ours", *forms)}
    took = in_turns(variants, repeats=args.repeats, clock=time.process_time)
    memory = {name: measured_memory(name, d) for name in variants}
    space, fit = results["ours"]
    figures: dict[str, Any] = {"rfm: ours, CPU s": float(np.median(took["ours"]))}
    for name in forms:
        score, direction = results[name]
        figures |= {
            f"rfm: {name} / ours, time": ratio(took, name, "ours"),
            f"rfm: ours / {name}, memory": memory["ours"] / memory[name],
            f"rfm: |cos| of the chosen direction, {name}": abs(
                float(direction @ space.direction(fit.weights))
            ),
            f"rfm: validation, ours and {name}": f"{fit.validation:.6f} {score:.6f}",
        }
    return figures | {f"rfm: {name}, MB": value for name, value in memory.items()}


def of_linear(layer: Layer, repeats: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    factorise = {"row_space": lambda: row_space(layer.train, layer.validation)}
    took = in_turns(factorise, repeats=repeats, clock=time.process_time)
    figures["factorisation, CPU s"] = float(np.median(took["row_space"]))
    for name, (rival, times) in rivals(layer).items():
        variants: dict[str, Callable[[], Any]] = {
            "rival": rival,
            "ours": partial(layer.fit_in_row_space, name),
        }
        took = in_turns(variants, repeats=repeats, clock=time.process_time)
        figures[f"{name}: scikit-learn / ours"] = times * ratio(took, "rival", "ours")
        if times == 1:  # else the one setting need not be the chosen one
            space, fit = layer.fit_in_row_space(name)
            candidates = rival()
            cosines = candidates @ space.direction(fit.weights)
            cosines /= np.linalg.norm(candidates, axis=1)
            figures[f"{name}: 1 - |cos|"] = 1 - float(abs(cosines).max())
    return figures


def measured_memory(name: str, d: int) -> float:
    """Megabytes that a fit adds to a process, at its peak."""
    command = [sys.executable, "-m", "benchmarks.analysis.fitting", "--memory-of", name]
    done = subprocess.run(
        [*command, "--d-model", str(d)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def extra_memory(name: str, d: int) -> float:
    def run(layer: Layer) -> None:
        if name == "ours":
            layer.fit_in_row_space("rfm")
        else:  # two iterations of one setting hold as much as all
            dense(layer, getattr(torch, name.split()[1]), iterations=2, settings=1)

    run(Layer(48))  # libraries, threads and their buffers
    layer = Layer(d)
    before = megabytes("VmRSS")
    run(layer)
    return peak_resident() - before


if __name__ == "__main__":
    main()
