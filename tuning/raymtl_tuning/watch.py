"""What the driver does as trials come and go: records, checkpoints of losers, budgets."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from raymtl.progress import Show
from raymtl_tuning.config import BudgetSection, TuneConfig
from raymtl_tuning.records import Record, Status, StudyFolder, front
from raymtl_tuning.search import COST, ROWS, STEP, VALUE, Search

MOST_TEXT = 600
"""Characters kept of what Ray says of a death."""
KILLED_FOR_MEMORY = "Worker exit type: NODE_OUT_OF_MEMORY"
"""How Ray says that its memory monitor killed a process."""


class Budget(Stopper):
    """Ends a study that has used up its time or rows, counted from its first part on."""

    def __init__(self, section: BudgetSection, records: Sequence[Record]):
        self._section = section
        self._rows_before = sum(record.rows for record in records)
        self._s_before = max((record.study_s for record in records), default=0.0)
        self._began = time.monotonic()
        self._rows: dict[str, int] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Counts; no trial is stopped by itself."""
        self._rows[trial_id] = result.get(ROWS, self._rows.get(trial_id, 0))
        return False

    def elapsed_s(self) -> float:
        """How far into the study this is."""
        return self._s_before + time.monotonic() - self._began

    def stop_all(self) -> bool:
        """Whether the budget is used up."""
        section, rows = self._section, self._rows_before + sum(self._rows.values())
        late = section.time_s is not None and self.elapsed_s() >= section.time_s
        return late or (section.rows is not None and rows >= section.rows)


class Recorder(Callback):
    """Writes a record as each trial ends, and removes the checkpoints of those that lost."""

    def __init__(
        self,
        config: TuneConfig,
        folder: StudyFolder,
        search: Search,
        budget: Budget,
        show: Show,
    ):
        self._config, self._folder, self._search = config, folder, search
        self._budget, self._show = budget, show
        self.records = {record.number: record for record in folder.records()}
        self._points = folder.begun()
        self._dropped: set[int] = set()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Keeps the point, so that a killed study goes on with it."""
        number, point = _given(trial)
        if number not in self._points:
            self._folder.begin_trial(number, point)
            self._points[number] = point

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Records a trial that came to its end, or was stopped."""
        whole = bool((trial.last_result or {}).get("whole"))
        cut: Status = "cut" if self._budget.stop_all() else "stopped"
        self._end(trial, "finished" if whole else cut)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Records a failure with its reason."""
        number, _ = _given(trial)
        self._end(trial, "failed", self._folder.failure(number) or death_of(trial))

    def _end(self, trial: Trial, status: Status, reason: str | None = None) -> None:
        number, point = _given(trial)
        result = trial.last_result or {}
        record = Record(
            number=number,
            point=point,
            status=status,
            reason=reason,
            value=None if status == "failed" else result.get(VALUE),
            spread=result.get("spread"),
            cost=result.get(COST),
            values=result.get("values") or [],
            metrics=result.get("metrics") or {},
            step=result.get(STEP, 0),
            rows=result.get(ROWS, 0),
            time_s=float(result.get("time_total_s", 0.0)),
            study_s=self._budget.elapsed_s(),
            attrs=self._search.attrs(number),
        )
        self._folder.end_trial(record)
        self.records[number] = record
        self._show(self._line(record))
        self.drop_losers(besides=number)

    def _line(self, record: Record) -> str:
        metric = f"{self._config.objective.name} {self._config.objective.metric}"
        reached = f"{metric} {record.value:.5f}" if record.value is not None else record.reason
        place = f"[{len(self.records)}/{self._search.total}]"
        first_line = (reached or "no validation").split("\n")[0]
        return f"{place} trial {record.number} {record.status}: {first_line}"

    def drop_losers(self, besides: int | None = None) -> None:
        """Removes checkpoints of ended trials that are not the best.

        Args:
            besides: a trial whose process may still be at them.
        """
        if self._config.keep_checkpoints == "all":
            return
        kept = {record.number for record in front(self._config.objective, [*self.records.values()])}
        for number in self.records.keys() - kept - self._dropped - {besides}:
            self._folder.drop_checkpoints(number)
            self._dropped.add(number)


def _given(trial: Trial) -> tuple[int, dict[str, Any]]:
    """A trial's number and point."""
    given = trial.config.get("trial", trial.config)
    return given["number"], given["point"]


def death_of(trial: Trial) -> str:
    """Why a trial failed whose process left no word: what Ray says of its death."""
    place = trial.error_file
    text = Path(place).read_text(errors="replace") if place and Path(place).exists() else ""
    text = " ".join(text.split())
    kind = "out of memory" if KILLED_FOR_MEMORY in text else "died"
    return f"{kind}: {text[:MOST_TEXT] or 'its process ended without a word'}"
