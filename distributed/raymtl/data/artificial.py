"""The papers' artificial data: MMoE's two regressions and DEPHN's related and unrelated labels.

Pure numpy; every row follows from the seed and its block's number. Sums go through einsum, whose
order does not depend on threads as BLAS's may.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymtl.data.artificial_config import DephnLogConfig, MmoeLogConfig
from raymtl.data.planted import SAMPLE_ROWS, sigmoid
from raymtl.schema import CategoricalFeature, LogSchema, NumericFeature, Table, Task

VECTOR_WIDTH, HIDDEN_UNITS, GAIN = 4, 64, 1.5
"""Of the random network behind DEPHN's score; the gain makes its tanh bend."""
LARGEST_SCORE = 15.0
"""|score| is cut here, before e^|score| is taken."""


@dataclass(frozen=True)
class MmoeLog:
    """Two regressions on the same normals, after Ma et al., MMoE (KDD 2018), section 3.2.

        w_1 = c u_1,   w_2 = c (p u_1 + sqrt(1 - p^2) u_2),   u_1 and u_2 orthogonal unit vectors
        y_k = w_k' x + sum over i of sin(alpha_i w_k' x + beta_i) + noise_k,   x ~ N(0, I)

    alpha and beta are the same for both tasks.
    """

    config: MmoeLogConfig
    weights_2D: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    @classmethod
    def of(cls, config: MmoeLogConfig) -> "MmoeLog":
        """Draws directions, and frequencies and phases where they are drawn; not from p."""
        rng = np.random.default_rng([config.seed, 0])
        first, second = rng.standard_normal((2, config.num_features))
        first = first / np.sqrt(np.einsum("d,d->", first, first))
        second = second - np.einsum("d,d->", second, first) * first
        second = second / np.sqrt(np.einsum("d,d->", second, second))
        p, m = config.correlation, config.num_sines
        turned = p * first + np.sqrt(1 - p * p) * second
        alpha, beta = rng.standard_normal((2, m))
        if config.constants == "counting":
            alpha, beta = np.arange(1.0, m + 1), np.arange(0.0, m) ** 2
        return cls(config, config.scale * np.stack([first, turned]), alpha, beta)

    def labels(self, x_ND: np.ndarray) -> np.ndarray:
        """Labels without noise, float64 (n, 2)."""
        s_N2 = np.einsum("nd,kd->nk", x_ND.astype(np.float64), self.weights_2D)
        y_N2 = s_N2.copy()
        for alpha, beta in zip(self.alpha, self.beta, strict=True):
            y_N2 += np.sin(alpha * s_N2 + beta)
        return y_N2

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 (n, d) and labels float32 (n, 2)."""
        x_ND = rng.standard_normal((rows, self.config.num_features), dtype=np.float32)
        noise_N2 = self.config.noise_std * rng.standard_normal((rows, 2))
        return x_ND, (self.labels(x_ND) + noise_N2).astype(np.float32)

    def table(self, block: int, first_row: int, rows: int) -> pa.Table:
        """The rows of one block of the log."""
        x_ND, y_N2 = self.draw(np.random.default_rng([self.config.seed, 1, block]), rows)
        columns = {f"x_{d}": x_ND[:, d] for d in range(x_ND.shape[1])}
        return pa.table({**columns, "y_1": y_N2[:, 0], "y_2": y_N2[:, 1]})

    def schema(self) -> LogSchema:
        """Numbers only, no table; two regressions."""
        names = [f"x_{d}" for d in range(self.config.num_features)]
        return LogSchema(
            features=[NumericFeature(kind="numeric", name=name) for name in names],
            tasks=[Task(name=name, label=name, kind="regression") for name in ("y_1", "y_2")],
        )

    def facts(self) -> dict[str, Any]:
        """What truth.json says of the log; the labels' figures are of a sample."""
        _, y_N2 = self.draw(np.random.default_rng([self.config.seed, 2]), SAMPLE_ROWS)
        return {
            "correlation": self.config.correlation,
            "label_pearson": float(np.corrcoef(y_N2.T)[0, 1]),
            "alpha": self.alpha.tolist(),
            "beta": self.beta.tolist(),
            "tasks": {
                name: {"variance": float(y.var()), "least_mse": self.config.noise_std**2}
                for name, y in zip(("y_1", "y_2"), y_N2.T.astype(np.float64), strict=True)
            },
        }


@dataclass(frozen=True)
class DephnLog:
    """Three labels of one score c, after Kong et al., DEPHN (IJCNN 2023), section IV-A.

        base = 1[c > 0]     related = 1[y_r > 0]     unrelated = 1[y_u > 0]
        y_r = sign(c) (2 ln(|c| + 1) + 0.1 e^|c|) + noise
        y_u = sign(c) (2 sin|c| + 0.1 cos|c|)

    Ours: the paper's c is the output of a network trained on Criteo; here it is that of a random
    network on random categorical fields, brought to a mean and a spread. The paper sets the sign
    before the logarithm alone; with it before both terms the correlations are those it reports.
    """

    config: DephnLogConfig
    vectors: np.ndarray
    """(F, num_values, 4), one vector per value of a field."""
    hidden: np.ndarray
    """(F * 4, units)."""
    out: np.ndarray
    """(units,)."""
    center: float
    spread: float
    """Mean and standard deviation of the network's output, from a sample."""

    @classmethod
    def of(cls, config: DephnLogConfig) -> "DephnLog":
        """Draws the network and finds the mean and the spread of its output."""
        rng = np.random.default_rng([config.seed, 0])
        width = config.num_fields * VECTOR_WIDTH
        vectors = rng.standard_normal((config.num_fields, config.num_values, VECTOR_WIDTH))
        hidden = rng.standard_normal((width, HIDDEN_UNITS)) * GAIN / np.sqrt(width)
        raw = cls(config, vectors, hidden, rng.standard_normal(HIDDEN_UNITS), 0.0, 1.0)
        sample = raw.output(raw.ids(np.random.default_rng([config.seed, 2]), SAMPLE_ROWS))
        center, spread = float(sample.mean()), float(sample.std()) or 1.0
        return cls(config, vectors, hidden, raw.out, center, spread)

    def ids(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """int64 (n, F) in 1..num_values."""
        return rng.integers(1, self.config.num_values + 1, (rows, self.config.num_fields))

    def output(self, ids_NF: np.ndarray) -> np.ndarray:
        """The network's output, (n,)."""
        x_NFD = self.vectors[np.arange(self.config.num_fields), ids_NF - 1]
        hidden_NH = np.tanh(np.einsum("ni,ih->nh", x_NFD.reshape(len(ids_NF), -1), self.hidden))
        return np.einsum("nh,h->n", hidden_NH, self.out)

    def scores(self, ids_NF: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Score of each task by name, (n,); its sigmoid is the paper's confidence."""
        standard = (self.output(ids_NF) - self.center) / self.spread
        c = np.clip(
            self.config.score_mean + self.config.score_std * standard, -LARGEST_SCORE, LARGEST_SCORE
        )
        noise = self.config.noise_std * rng.standard_normal(len(c))
        return {"base": c, "related": related(c) + noise, "unrelated": unrelated(c)}

    def table(self, block: int, first_row: int, rows: int) -> pa.Table:
        """The rows of one block of the log."""
        rng = np.random.default_rng([self.config.seed, 1, block])
        ids_NF = self.ids(rng, rows)
        columns = {f"field_{f}": ids_NF[:, f] for f in range(ids_NF.shape[1])}
        scores = self.scores(ids_NF, rng)
        return pa.table({**columns, **{k: (s > 0).astype(np.int8) for k, s in scores.items()}})

    def schema(self) -> LogSchema:
        """Categorical fields, each with a table; `base` and the chosen second task or both."""
        names = [f"field_{f}" for f in range(self.config.num_fields)]
        second = self.config.second
        tasks = ["base", *(["related", "unrelated"] if second == "both" else [second])]
        return LogSchema(
            features=[
                CategoricalFeature(kind="categorical", name=name, encoding="index")
                for name in names
            ],
            tables=[Table(name=name, rows=self.config.num_values + 1) for name in names],
            tasks=[Task(name=name, label=name) for name in tasks],
        )

    def facts(self) -> dict[str, Any]:
        """What truth.json says of the log; all figures are of a sample."""
        rng = np.random.default_rng([self.config.seed, 3])
        scores = self.scores(self.ids(rng, SAMPLE_ROWS), rng)
        base = scores["base"]
        return {
            "tasks": {
                name: {
                    "positive_rate": float((score > 0).mean()),
                    "label_pearson": _pearson(base > 0, score > 0),
                    "confidence_pearson": _pearson(_confidence(base), _confidence(score)),
                }
                for name, score in scores.items()
            }
        }


def related(c: np.ndarray) -> np.ndarray:
    """DEPHN's related score without its noise."""
    size = np.abs(c)
    return np.sign(c) * (2 * np.log1p(size) + 0.1 * np.exp(size))


def unrelated(c: np.ndarray) -> np.ndarray:
    """DEPHN's unrelated score."""
    size = np.abs(c)
    return np.sign(c) * (2 * np.sin(size) + 0.1 * np.cos(size))


def _confidence(score: np.ndarray) -> np.ndarray:
    return sigmoid(np.clip(score, -100, 100))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0
