"""Calibration per task: a curve from a model's probability to the rate seen at it.

Fitted on a log the model was not trained on (the validation log, say) and kept in the run's folder
beside the checkpoint it belongs to. Both curves rise, so AUC and GAUC stay (isotonic ties apart).
The fits are scikit-learn's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from raymtl.errors import InputError
from raymtl.run import home_of
from raymtl.scores import calibration, log_loss
from raymtl.storage import Folder

Method = Literal["platt", "isotonic"]
LEAST = 1e-7
"""Probabilities are kept this far from 0 and 1."""


@dataclass(frozen=True)
class Curve:
    """One task's: Platt's line through log-odds, or the corners of a rising broken line."""

    method: str
    slope: float = 1.0
    intercept: float = 0.0
    scores: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64, of scores of any shape."""
        if self.method == "platt":
            odds = self.slope * _log_odds(scores) + self.intercept
            return 1 / (1 + np.exp(-odds))
        return np.interp(scores, self.scores, self.rates)


def fit(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, method: Method) -> Curve:
    """Fits one task's curve.

    Args:
        scores: float (n,), probabilities.
        labels: (n,), 0 or 1.
        weights: (n,), positive.

    Raises:
        InputError: there are not both labels, or Platt's line falls: the scores rank the wrong way.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise InputError(
            "a task cannot be calibrated",
            f"{len(labels):,} observed rows, all of one label",
            "rows of both labels",
            "calibrate on a larger log",
        )
    if method == "platt":
        line = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        line.fit(_log_odds(scores)[:, None], labels, sample_weight=weights)
        slope, intercept = float(np.ravel(line.coef_)[0]), float(np.ravel(line.intercept_)[0])
        if slope <= 0:
            raise InputError(
                "Platt's line falls: higher scores go with fewer positives",
                f"slope {slope:.3g} over {len(labels):,} rows",
                "a model that ranks better than chance",
                "train it further, or calibrate on another log",
            )
        return Curve("platt", slope, intercept)
    line = IsotonicRegression(y_min=LEAST, y_max=1 - LEAST, out_of_bounds="clip")
    line.fit(scores, labels, sample_weight=weights)
    corners = (line.X_thresholds_, line.y_thresholds_)
    return Curve("isotonic", scores=_plain(corners[0]), rates=_plain(corners[1]))


def fit_tasks(
    scores: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    method: Method,
) -> dict[str, Any]:
    """Fits every task and says what it changed on the rows it was fitted on.

    Args:
        labels: NaN where unobserved; those rows are left out.
        weights: 0 where unobserved.

    Returns:
        Task -> {"curve", "rows", "before" and "after": {"log_loss", "calibration"}}.
    """
    found = {}
    for task, values in scores.items():
        seen = weights[task] > 0
        p, y, w = values[seen].astype(np.float64), labels[task][seen], weights[task][seen]
        curve = fit(p, y, w, method)
        found[task] = {"curve": asdict(curve), "rows": int(seen.sum())}
        for name, probabilities in (("before", p), ("after", curve(p))):
            found[task][name] = {
                "log_loss": log_loss(probabilities, y, w),
                "calibration": calibration(probabilities, y, w),
            }
    return found


def path_of(checkpoint: str) -> str:
    """File of a checkpoint's calibration, below the run's folder."""
    return f"calibration/{checkpoint}.json"


def read(checkpoint: Folder) -> dict[str, Curve]:
    """The curves that belong to a checkpoint.

    Raises:
        InputError: it was not calibrated, or the file is not as it was written.
    """
    folder = Folder(home_of(checkpoint.url))
    path = path_of(checkpoint.url.rpartition("/")[2])
    if folder.size(path) is None:
        raise InputError(
            "the checkpoint was not calibrated",
            checkpoint.url,
            f"{folder.url}/{path}",
            "run `raymtl calibrate RUN --log LOG` first",
        )
    try:
        tasks = json.loads(folder.read(path))["tasks"]
        return {task: _curve(values["curve"]) for task, values in tasks.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            "a calibration cannot be read",
            f"{folder.url}/{path}: {error}",
            "the file that `raymtl calibrate` wrote",
            "calibrate anew",
        ) from None


def _curve(values: dict[str, Any]) -> Curve:
    curve = Curve(
        str(values["method"]),
        float(values["slope"]),
        float(values["intercept"]),
        _plain(values["scores"]),
        _plain(values["rates"]),
    )
    numbers = np.array([curve.slope, curve.intercept, *curve.scores, *curve.rates])
    corners = len(curve.scores) == len(curve.rates)
    corners &= bool((np.diff(curve.scores) >= 0).all() and (np.diff(curve.rates) >= 0).all())
    known = curve.method == "platt" or (curve.method == "isotonic" and len(curve.scores) > 0)
    if not (known and corners and np.isfinite(numbers).all()):
        raise ValueError("its numbers are no rising curve")
    return curve


def _plain(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(scores, np.float64), LEAST, 1 - LEAST)
    return np.log(p / (1 - p))
