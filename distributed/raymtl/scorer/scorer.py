"""Scorer: an artifact, verified and loaded, that scores requests."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymtl.scorer.columns import Form
from raymtl.scorer.embedding import Embedding
from raymtl.scorer.errors import damaged, one_line, refuse, require
from raymtl.scorer.features import Sizes
from raymtl.scorer.files import FORMAT_VERSION, reading, tensors_of, verified
from raymtl.scorer.program import Program

BATCH_ROWS = 4096
"""Rows scored at once; bounds memory, changes no score."""
TOLERANCE = 1e-5
"""How far a replayed score may be off, relative to max(1, score): processors round differently."""
LEAST = 1e-7
"""Calibration keeps probabilities this far from 0 and 1."""


class Scorer:
    """An artifact, loaded and verified."""

    def __init__(self, folder: str | os.PathLike[str], replay: bool = True):
        """Checks the hashes of all files, loads them, and scores the golden requests.

        Args:
            folder: what `raymtl export` wrote.
            replay: whether golden requests must give the scores kept beside them.

        Raises:
            ArtifactError: naming the file and what is wrong with it.
        """
        self.folder = Path(folder)
        texts = verified(self.folder)
        with reading(self.folder, "artifact.json"):
            self.info: dict[str, Any] = json.loads(texts["artifact.json"])
            require(self.info["format_version"] == FORMAT_VERSION, "of another format version")
            self.tasks = tuple(str(task["name"]) for task in self.info["tasks"])
            require(0 < len(set(self.tasks)) == len(self.tasks), "no tasks, or of one name")
            self._is_binary = [task["kind"] == "binary" for task in self.info["tasks"]]
            self._sizes = Sizes.of(self.info)
            self._curves = {t: _curve(c) for t, c in (self.info["calibration"] or {}).items()}
            require(self._curves.keys() <= set(self.tasks), "a calibration of no task")
        with reading(self.folder, "tables.safetensors"):
            self._embedding = Embedding(self._sizes, tensors_of(self.folder / "tables.safetensors"))
        with reading(self.folder, "vocabularies.safetensors"):
            stored = tensors_of(self.folder / "vocabularies.safetensors")
            self._forms = {
                name: Form(name, form, self._sizes, stored)
                for name, form in self.info["forms"].items()
            }
            require(len(self._forms) > 0 and self._forms.keys() <= {"log", "raw"}, "no known form")
        with reading(self.folder, "program.json"):
            weights = tensors_of(self.folder / "weights.safetensors")
            self._program = Program(json.loads(texts["program.json"]), weights)
        if replay:
            with reading(self.folder, "golden.json"):
                self._replay(json.loads(texts["golden.json"]))

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of requests: `raw` (columns before prepare) where there is one, and `log`."""
        return tuple(sorted(self._forms, reverse=True))

    def columns(self, form: str | None = None) -> dict[str, str]:
        """Column -> what it must hold, for requests of a form."""
        return self._form(form).described()

    def score(
        self, columns: Mapping[str, Any], form: str | None = None, calibrated: bool | None = None
    ) -> dict[str, np.ndarray]:
        """Scores rows.

        Args:
            columns: name -> n values: a list or a one-dimensional array, of lists where the column
                is a bag or a sequence (oldest first); None where a value is missing.
            form: `raw` or `log`; null takes `raw` where the artifact has it.
            calibrated: whether after calibration; null does so where the artifact has it.

        Returns:
            Task -> float32 (n,): probabilities, or values of a regression.

        Raises:
            RequestError: naming the column and the row.
        """
        if calibrated and not self._curves:
            refuse("the artifact has no calibration", "calibrated = True", "an export --calibrated")
        ids_nC, weights, numeric = self._form(form).read(columns)
        scores_nT = np.zeros((len(ids_nC), len(self.tasks)), np.float32)
        with torch.inference_mode():
            for start in range(0, len(ids_nC), BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                scores_nT[part] = self._scored(ids_nC[part], weights[part], numeric[part])
        wrong = np.argwhere(~np.isfinite(scores_nT))
        if len(wrong):
            row, task = wrong[0].tolist()
            refuse(
                f"the score of task {self.tasks[task]} is not finite",
                f"{scores_nT[row, task]} in row {row}",
                "numbers of the size the model was trained on",
            )
        scores = dict(zip(self.tasks, scores_nT.T.copy(), strict=True))
        if calibrated is not False:
            for task, curve in self._curves.items():
                scores[task] = curve(scores[task]).astype(np.float32)
        return scores

    def _scored(self, ids: np.ndarray, weights: np.ndarray, numeric: np.ndarray) -> np.ndarray:
        inputs = self._embedding.inputs(*map(torch.from_numpy, (ids, weights, numeric)))
        try:
            logits_BT = self._program.run(inputs)
            parts = [
                torch.sigmoid(logits_BT[:, t]) if binary else logits_BT[:, t]
                for t, binary in enumerate(self._is_binary)
            ]
            return torch.stack(parts, dim=1).numpy()
        except Exception as error:
            raise damaged("program.json", f"the program fails: {one_line(error)}") from None

    def _form(self, name: str | None) -> "Form":
        name = self.forms[0] if name is None else name
        if not isinstance(name, str) or name not in self._forms:
            refuse("the artifact has no such form of requests", repr(name), " or ".join(self.forms))
        return self._forms[name]

    def _replay(self, golden: list[dict[str, Any]]) -> None:
        for request in golden:
            scores = self.score(request["columns"], request["form"], calibrated=False)
            for task in self.tasks:
                wanted = np.array(request["scores"][task], np.float64)
                require(wanted.shape == scores[task].shape, "scores of another length")
                worst = np.max(
                    np.abs(scores[task] - wanted) / np.maximum(1, np.abs(wanted)), initial=0
                )
                require(bool(worst <= TOLERANCE), f"scores of {task} are off by {worst:.2g}")


def _curve(curve: dict[str, Any]) -> Any:
    """What turns a task's probabilities into calibrated ones."""
    slope, intercept = float(curve["slope"]), float(curve["intercept"])
    scores, rates = (np.array(curve[k], np.float64) for k in ("scores", "rates"))
    known = curve["method"] == "platt" or (curve["method"] == "isotonic" and len(scores) > 0)
    require(known and scores.shape == rates.shape and scores.ndim == 1, "a curve that is none")
    require(bool(np.isfinite([slope, intercept, *scores, *rates]).all()), "a curve not finite")
    if curve["method"] == "isotonic":
        return lambda given: np.interp(given, scores, rates)

    def platt(given: np.ndarray) -> np.ndarray:
        p = np.clip(given.astype(np.float64), LEAST, 1 - LEAST)
        return 1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + intercept)))

    return platt


def main() -> None:
    """Scores a request from stdin, JSON columns, with the artifact this file lies in."""
    scorer = Scorer(Path(__file__).parent)
    scores = scorer.score(json.load(sys.stdin))
    json.dump({task: values.tolist() for task, values in scores.items()}, sys.stdout)


if __name__ == "__main__":
    main()
