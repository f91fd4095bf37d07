"""The training loop. Takes batches and callables; knows nothing of Ray.

batch, with status and denominators agreed -> step -> metrics
-> every so often: validate, checkpoint, report
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from raymtl import collectives, warm_start
from raymtl.ahead import Ahead, Next
from raymtl.batch import Batch
from raymtl.config import TrainConfig
from raymtl.errors import InputError, NonFinite, RankFailed
from raymtl.evaluator import evaluate
from raymtl.learner import Learner, StepOutcome
from raymtl.lineage import known_rows
from raymtl.metrics import TrainingHistograms
from raymtl.saving import Saver
from raymtl.source import planned_steps
from raymtl.status import raise_together

NOTICE_INTERVAL_S = 5.0
"""Seconds between two questions whether a node is about to go; each waits for all ranks."""


class Source(Protocol):
    """Where batches come from; a Ray Data one in launch.py, a plain one in tests."""

    steps_per_epoch: int
    num_valid_steps: int
    """0 where there is no validation log."""

    def train(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This rank's batches of the global steps start to stop."""
        ...

    def valid(self) -> Iterator[Batch]:
        """This rank's validation batches, from the first."""
        ...

    def origin(self, batch: Batch, rows: Tensor) -> str:
        """Files and row groups of some of a batch's rows, for messages."""
        ...


@dataclass
class TrainState:
    """All that decides how a run goes on, besides weights and metric histograms."""

    step: int = 0
    rows: int = 0
    """Impressions trained, all ranks and epochs."""
    skipped_rows: int = 0
    """Impressions that could not be read, all ranks and epochs."""
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    validated_step: int = 0
    last_metrics: dict[str, Any] = field(default_factory=dict)
    before_metrics: dict[str, Any] = field(default_factory=dict)
    """Of the training log before the first step (validation.before_training)."""
    stopped: str | None = None
    """Why the run ended; null while it goes on."""


_STATE = TypeAdapter(TrainState)


def state_of(saved: dict[str, Any]) -> TrainState:
    """A checkpoint's state; raises InputError where it is not one."""
    try:
        return _STATE.validate_python(saved, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            "the trainer's state in a checkpoint cannot be read",
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            "the state of a trainer of this version",
            "use another checkpoint, or the raymtl that wrote it",
        ) from None


@dataclass
class Reports:
    """What the loop tells the world; every callable may do nothing."""

    line: Callable[[dict], None]
    """One metrics.jsonl line, on rank 0."""
    progress: Callable[[dict], None]
    """Step, stop, loss, rows/s; on rank 0 about once a second."""
    checkpointed: Callable[[int, dict], None]
    """Every rank, after a checkpoint is complete."""
    flush: Callable[[], None]
    """Rank 0, before one is: its lines must not be lost. Raises OSError."""


def _never() -> bool:
    return False


class Trainer:
    """One run on one rank, from where its newest good checkpoint left it."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        source: Source,
        saver: Saver,
        reports: Reports,
        notice: Callable[[], bool] = _never,
    ):
        """Restores nothing yet.

        Args:
            notice: collective; whether a node of the group is about to go. Asked about every
                `NOTICE_INTERVAL_S`, at the same step on every rank.
        """
        self.config, self.learner, self.source = config, learner, source
        self.saver, self.reports, self.notice = saver, reports, notice
        self.asked_s, self.notice_interval_s = time.monotonic(), NOTICE_INTERVAL_S
        self.leaving = False
        """Whether the run stopped because a node is about to go, everything saved."""
        self.state = TrainState()
        self.window = TrainingHistograms(
            learner.layout.task_names, learner.kinds, config.metrics.num_bins
        )
        self.grown: Mapping[str, int] = {}
        """Rows that `init_from` knows of tables which grew since."""
        self.started_s, self.times = time.monotonic(), learner.times
        self.stop_step = planned_steps(config, source.steps_per_epoch)

    def restore(self) -> list[str]:
        """Collective. Goes back to the newest good checkpoint, or starts as `init_from` says.

        Returns:
            Warnings about damaged checkpoints that were passed over.
        """
        saved, warnings = self.saver.restore(self.window)
        if saved is None:
            self.grown = warm_start.start(self.learner)
        else:
            self.state = state_of(saved)
            limits = ("num_epochs", "max_steps", "max_rows", "max_time_s")
            if self.state.stopped in limits and not self._reached_end():
                self.state.stopped = None
        return warnings

    def _reached_end(self) -> bool:
        most_rows = self.config.train.max_rows
        return self.state.step >= self.stop_step or (
            most_rows is not None and self.state.rows >= most_rows
        )

    def run(self) -> TrainState:
        """Collective. Trains to the end.

        Returns:
            The final state; its `stopped` says why training ended, null where a node is about to
            go (`leaving`).

        Raises:
            InputError, NonFinite, RankFailed: on all ranks alike.
        """
        self._score_before_training()
        batches = self.source.train(self.state.step, self.stop_step)
        with Ahead(self.learner, batches, self.config.failure.hang_timeout_s) as ahead:
            self._train(ahead)
        return self.state

    def _train(self, ahead: Ahead) -> None:
        """Collective. All steps."""
        state, clock = self.state, Clock(self.state)
        self.times.begin()
        if self._goes_on():
            ahead.begin()
        while self._goes_on():
            found = self._take(ahead)
            if state.step + 1 < self.stop_step:
                ahead.begin()
            self.times.lap("data")
            batch = found.batch
            assert batch.step == state.step
            stop = self.stop_step
            outcome = self.learner.step(
                batch, found.sums, state.step, stop, found.asked, self._word()
            )
            if not outcome.finite:
                self._raise_non_finite(batch, outcome)
            time_is_up, ask, ranks_written = outcome.word
            if ranks_written == collectives.world_size():
                self._complete_save()
                self.times.lap("checkpoint")
            self.window.update(outcome.probabilities_BT, batch)
            state.step, state.rows = state.step + 1, state.rows + found.rows
            state.skipped_rows += found.skipped
            self._report(outcome, clock)
            self._end_if_due(time_is_up > 0)
            self.times.lap("rest")
            self._validate_if_due(batch)
            self.leaving = ask > 0 and self._is_leaving() and state.stopped is None
            self.times.lap("validation")
            self._save_if_due()
            self.times.lap("checkpoint")
        self._complete_save()
        self.times.lap("checkpoint")

    def _goes_on(self) -> bool:
        state = self.state
        return state.step < self.stop_step and state.stopped is None and not self.leaving

    def _score_before_training(self) -> None:
        """Collective. Progressive validation: the log as the run it starts from would score it."""
        if not self.config.validation.before_training or self.state.step:
            return
        layout, num_steps = self.learner.layout, self.source.steps_per_epoch
        batches = (known_rows(b, layout, self.grown) for b in self.source.train(0, num_steps))
        metrics = evaluate(self.learner, batches, num_steps, self.config.metrics)
        self.state.before_metrics = dict(metrics)
        if collectives.rank() == 0:
            named = {f"before/{key}": metric for key, metric in metrics.items()}
            self.reports.line({"step": 0, "rows": 0} | named)

    def _take(self, ahead: Ahead) -> Next:
        """Collective. What the next step is made of; a failure still completes the save begun."""
        try:
            return ahead.take()
        except (InputError, RankFailed):
            self._complete_save()
            raise

    def _is_leaving(self) -> bool:
        """Collective. Whether a node is about to go, so that all is to be saved at once."""
        self.asked_s = time.monotonic()
        return self.notice()

    def _word(self) -> tuple[float, float, float]:
        """What every rank says in a step: time is up, nodes are to be asked about, files written.

        One rank says the first two, and all how many of them have written.
        """
        limit, now, leads = self.config.train.max_time_s, time.monotonic(), collectives.rank() == 0
        late = limit is not None and leads and now - self.started_s >= limit
        ask = leads and now - self.asked_s >= self.notice_interval_s
        return float(late), float(ask), float(self.saver.written)

    def _raise_non_finite(self, batch: Batch, outcome: StepOutcome) -> None:
        """Collective. Ranks name their rows without a finite prediction; rank 0 its all if none."""
        counted_B = batch.weight_B > 0
        bad_B = ~torch.isfinite(outcome.logits_BT).all(dim=1) & counted_B
        ranks = torch.tensor([float(bad_B.any())], device=self.learner.device)
        none_is_bad = float(collectives.sum_(ranks)) == 0
        self._complete_save()
        error = None
        if bool(bad_B.any()) or (none_is_bad and collectives.rank() == 0):
            where = self.source.origin(batch, counted_B if none_is_bad else bad_B)
            error = NonFinite(
                f"loss or gradient is not finite at step {self.state.step}\n"
                f"  rows:   {where}\n"
                f"  wanted: finite numbers; nothing was moved at this step\n"
                f"  do:     look at these rows, or lower the learning rates; the last good "
                f"checkpoint is {self.saver.last_complete or 'none yet'}"
            )
        raise_together(error, self.learner.device)

    def _report(self, outcome: StepOutcome, clock: "Clock") -> None:
        state = self.state
        every = self.config.train.report_every_steps
        if state.step % every == 0 or state.step == self.stop_step:
            values = self.window.compute(self.learner.device)
            self.window.reset()
            if collectives.rank() == 0:
                epoch = state.step / self.source.steps_per_epoch
                timing = {"epoch": round(epoch, 4), "rows_per_s": round(clock.rows_per_s(state))}
                timing["loss"] = float(outcome.loss)
                if state.skipped_rows:
                    timing["skipped_rows"] = state.skipped_rows
                if self.config.balancing.name in ("uncertainty", "dwa"):
                    names = self.learner.layout.task_names
                    weights = zip(names, outcome.weight_T.tolist(), strict=True)
                    timing |= {f"{name}/balancing_weight": weight for name, weight in weights}
                timing |= self.times.shares()
                self.reports.line({"step": state.step, "rows": state.rows} | timing | values)
        if collectives.rank() == 0 and clock.second_passed():
            self.reports.progress(
                {
                    "step": state.step,
                    "stop_step": self.stop_step,
                    "rows_per_step": self.config.train.global_batch_size,
                    "loss": float(outcome.loss),
                    "rows_per_s": clock.recent_rows_per_s(state),
                }
            )

    def _end_if_due(self, time_is_up: bool) -> None:
        state, most_rows = self.state, self.config.train.max_rows
        if state.step >= self.stop_step:
            limited = self.stop_step < self.config.train.num_epochs * self.source.steps_per_epoch
            state.stopped = "max_steps" if limited else "num_epochs"
        elif most_rows is not None and state.rows >= most_rows:
            state.stopped = "max_rows"
        elif time_is_up:
            state.stopped = "max_time_s"

    def _validate_if_due(self, batch: Batch) -> None:
        """Collective. Validates, keeps the best and decides about stopping early.

        Args:
            batch: the step's, for what the gates take from where.
        """
        state, every = self.state, self.config.validation.every_steps
        at_epoch_end = state.step % self.source.steps_per_epoch == 0
        due = state.step % every == 0 if every else at_epoch_end
        if not self.source.num_valid_steps or not (due or state.stopped):
            return
        metrics = evaluate(
            self.learner, self.source.valid(), self.source.num_valid_steps, self.config.metrics
        )
        state.validated_step, state.last_metrics = state.step, dict(metrics)
        value = metrics[self.config.validation.metric]
        gates = self.learner.gate_mass(batch)
        if collectives.rank() == 0:
            named = {f"valid/{key}": metric for key, metric in metrics.items()} | gates
            self.reports.line({"step": state.step, "rows": state.rows} | named)
        self._keep_best(value)

    def _keep_best(self, value: float | None) -> None:
        state, section = self.state, self.config.validation
        sign = 1 if section.higher_is_better else -1
        best = state.best_value
        if value is not None and (best is None or sign * (value - best) > section.min_delta):
            state.best_value, state.best_step = value, state.step
            state.best_metrics, state.validations_without_gain = dict(state.last_metrics), 0
            return
        state.validations_without_gain += 1
        patience = section.patience
        if patience is not None and state.validations_without_gain >= patience:
            state.stopped = state.stopped or "no gain on validation"

    def _save_if_due(self) -> None:
        """Collective. Starts a checkpoint in the background."""
        state, every = self.state, self.config.checkpoint.every_steps
        validated = state.validated_step == state.step
        at_epoch_end = state.step % self.source.steps_per_epoch == 0
        due = state.step % every == 0 if every else validated or at_epoch_end
        if due or state.stopped or self.leaving:
            self._complete_save()
            value = state.last_metrics.get(self.config.validation.metric) if validated else None
            self.saver.start(state.step, asdict(state), self.window, value)

    def _complete_save(self) -> None:
        """Collective. Finishes the save under way, if there is one."""
        if self.saver.busy:
            step = self.saver.complete(self.reports.flush)
            self.reports.checkpointed(step, self.state.last_metrics)


class Clock:
    """Rates of one attempt, on rank 0."""

    def __init__(self, state: TrainState):
        self._start = self._line = self._tick = (time.monotonic(), state.rows)

    def rows_per_s(self, state: TrainState) -> float:
        """Impressions a second since the last call."""
        now = (time.monotonic(), state.rows)
        rate = (now[1] - self._line[1]) / max(1e-9, now[0] - self._line[0])
        self._line = now
        return rate

    def second_passed(self) -> bool:
        """Whether a second has gone by since `recent_rows_per_s` was read."""
        return time.monotonic() - self._tick[0] >= 1.0

    def recent_rows_per_s(self, state: TrainState) -> float:
        """Impressions a second since it was read last."""
        now = (time.monotonic(), state.rows)
        rate = (now[1] - self._tick[1]) / max(1e-9, now[0] - self._tick[0])
        self._tick = now
        return rate
