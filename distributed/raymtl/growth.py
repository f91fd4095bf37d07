"""Where saved weights lie in those of a run that has more features, tasks or table rows.

What is new keeps its seeded values. Along each dimension of a dense parameter that differs, the
saved places are found by what the dimension counts: the fields' vectors side by side, the fields,
the numeric columns, or a number that goes with the tasks (theirs first, shared ones last).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from raymtl.batch import Layout
from raymtl.config import ModelSection
from raymtl.embedding.tables import TableSpec
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.schema import LogSchema

TAKE_TASKS = ("shared_bottom", "single_task", "mmoe", "omoe", "cgc", "stem")
"""Models that new tasks may be added to: their parts stand task by task, shared ones last."""


@dataclass(frozen=True)
class Growth:
    """What a schema has that a checkpoint's has not."""

    model: ModelSection
    width: int
    old: LogSchema
    new: LogSchema
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that tables had when they were saved, of those that grew; 0: the table is new."""

    @property
    def features(self) -> list[str]:
        """New features."""
        return _added(self.old.features, self.new.features)

    @property
    def tasks(self) -> list[str]:
        """New tasks."""
        return _added(self.old.tasks, self.new.tasks)

    def lines(self) -> list[str]:
        """What is new, for a person."""
        kinds = (("feature", self.features), ("task", self.tasks))
        lines = [f"{kind} {name} is new" for kind, names in kinds for name in names]
        for name, rows in self.rows.items():
            count = self.new.table(name).num_rows
            new = (
                f"{count - rows:,} new rows behind {rows:,}" if rows else f"{count:,} rows, all new"
            )
            lines.append(f"table {name} has {new}")
        return lines

    def check(self) -> None:
        """Raises InputError where the model cannot take what is new; builds it without weights."""
        if self.tasks and self.model.name not in TAKE_TASKS:
            raise self._refusal(f"new tasks {', '.join(self.tasks)}", f"one of {TAKE_TASKS}")
        if not (self.features or self.tasks):
            return
        saved = dict(self._built(self.old).named_parameters())
        for name, parameter in self._built(self.new).named_parameters():
            if name in saved:
                self.places(name, saved.pop(name).shape, parameter.shape)
        if saved:
            raise self._refusal(f"no place for {next(iter(saved))}", "a place for every weight")

    def filled(self, name: str, saved: Tensor, seeded: Tensor) -> Tensor:
        """A parameter's seeded values with the saved ones in their places."""
        if saved.shape == seeded.shape:
            return saved
        made = seeded.detach().clone()
        places = self.places(name, saved.shape, seeded.shape)
        made[torch.meshgrid(*places, indexing="ij")] = saved.to(made)
        return made

    def places(self, name: str, saved: torch.Size, wanted: torch.Size) -> list[Tensor]:
        """For each dimension, the new index of every saved one.

        Raises:
            InputError: a dimension counts something else.
        """
        if len(saved) != len(wanted):
            raise self._refusal(f"{name} {tuple(saved)}", f"{tuple(wanted)}")
        return [
            torch.arange(a) if a == b else self._along(name, a, b)
            for a, b in zip(saved, wanted, strict=True)
        ]

    def columns(self, spec: TableSpec, saved_width: int, width: int) -> Tensor:
        """The new column of every saved one of a table, whose rows hold views side by side."""
        then = registry.shape(self.model, self._layout(self.old), self.width).num_views
        assert spec.views > then and saved_width % then == 0, f"{spec.name}: {saved_width} columns"
        return self._with_tasks(saved_width, width)

    def _along(self, name: str, a: int, b: int) -> Tensor:
        then, now = (_fields(self._layout(s)) for s in (self.old, self.new))
        numeric = [self._layout(s).numeric_names for s in (self.old, self.new)]
        kept = torch.tensor([now.index(field) for field in then])
        if (a, b) == (len(then) * self.width, len(now) * self.width):
            return (kept[:, None] * self.width + torch.arange(self.width)).flatten()
        if (a, b) == tuple(map(len, numeric)):
            return torch.tensor([numeric[1].index(column) for column in numeric[0]])
        if (a, b) == (len(then), len(now)):
            return kept
        if self.tasks:
            return self._with_tasks(a, b)
        raise self._refusal(f"{name} with {a} places", f"{b}, which are not told by the features")

    def _with_tasks(self, a: int, b: int) -> Tensor:
        """Places of a dimension of n T + m: T tasks' blocks first, m shared ones last."""
        num_old, num_new = len(self.old.tasks), len(self.new.tasks)
        each, odd = divmod(b - a, num_new - num_old)
        shared = a - each * num_old
        if odd or each < 1 or shared < 0:
            raise self._refusal(f"{a} places for {num_old} tasks", f"{b} for {num_new}")
        return torch.cat([torch.arange(a - shared), torch.arange(b - shared, b)])

    def _built(self, schema: LogSchema) -> nn.Module:
        layout = self._layout(schema)
        try:
            with torch.device("meta"):
                return registry.build(self.model, layout, self.width)
        except (NotImplementedError, RuntimeError):  # its constructor reads values of tensors
            return registry.build(self.model, layout, self.width)

    def _layout(self, schema: LogSchema) -> Layout:
        return registry.layout(self.model, schema)

    def _refusal(self, got: str, wanted: str) -> InputError:
        return InputError(
            "the weights of this model cannot be taken into one with new features or tasks",
            f"model.name = {self.model.name}: {got}",
            wanted,
            "train anew, or leave them out",
        )


def _fields(layout: Layout) -> list[str]:
    """What a model's fields are, in the order of `FieldStack`."""
    ids, whole = ([c.feature for c in part] for part in (layout.fields, layout.sequences))
    return [*ids, *layout.numeric_names, *whole]


def _added(old: list, new: list) -> list[str]:
    known = {part.name for part in old}
    return [part.name for part in new if part.name not in known]
