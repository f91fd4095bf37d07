"""Features that are known in training only (`training_only`): what stands for them at serving.

The one place where they are put in: evaluate (its second setting), predict and `Model.predict` do
so through `ServingValues.apply`; an exported scorer takes the same constants from `ids` and
`numbers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raymtl.batch import Batch, Layout
from raymtl.data.decode import decode
from raymtl.schema import LogSchema, training_only


@dataclass(frozen=True)
class ServingValues:
    """Constants of decoded columns; none where no feature is `training_only`."""

    ids: Mapping[int, int]
    """Column of `ids_BC` -> row of its table, or PAD."""
    numbers: Mapping[int, float]
    """Column of `numeric_BN` -> value after the transforms; its missing indicator's too."""

    @classmethod
    def of(cls, schema: LogSchema, layout: Layout) -> "ServingValues":
        """Decodes the schema's serving values, as a row of the log would be.

        Args:
            layout: where the features' columns lie in a batch.

        Raises:
            InputError: a value is not one that the feature's column may hold.
        """
        only = [f.model_copy(update={"column": None}) for f in training_only(schema.features)]
        if not only:
            return cls({}, {})
        row = pa.table({f.name: _column(f.serving_value) for f in only})
        alone = schema.model_copy(update={"features": only})
        own = Layout.of(alone)
        arrays = decode(row, alone, own, "serving_value", labels=False)
        places = {c.feature: c.start for c in layout.id_columns}
        ids = {places[c.feature]: int(arrays["ids"][0, c.start]) for c in own.id_columns}
        numbers = {
            layout.numeric_names.index(name): float(arrays["numeric"][0, at])
            for at, name in enumerate(own.numeric_names)
        }
        return cls(ids, numbers)

    def __bool__(self) -> bool:
        return bool(self.ids or self.numbers)

    def apply(self, batch: Batch) -> Batch:
        """The batch as it would be served; the same one where nothing is to be put in."""
        if not self:
            return batch
        ids_BC, numeric_BN = batch.ids_BC.clone(), batch.numeric_BN.clone()
        for column, row in self.ids.items():
            ids_BC[:, column] = row
        for column, value in self.numbers.items():
            numeric_BN[:, column] = value
        return replace(batch, ids_BC=ids_BC, numeric_BN=numeric_BN)


def _column(value: Any) -> pa.Array:
    return pa.nulls(1) if value is None else pa.array([value])
