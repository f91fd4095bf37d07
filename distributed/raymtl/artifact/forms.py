"""Forms of requests: the training log's own columns, and those before `raymtl prepare`.

The one place that turns a schema into what a request holds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raymtl.checkpoint import Checkpoint
from raymtl.data.apply import feature_columns
from raymtl.data.frozen import Frozen, read_frozen, read_vocabulary
from raymtl.data.raw import Origin
from raymtl.errors import InputError
from raymtl.schema import (
    BagFeature,
    Feature,
    LogSchema,
    NumericFeature,
    SequenceFeature,
    is_spared,
)


@dataclass(frozen=True)
class Form:
    """What a request of one form holds."""

    name: str
    """`log` or `raw`."""
    schema: LogSchema
    vocabularies: dict[str, pa.Array]
    """By table: int64 or text, that of row 1 first."""

    def features(self) -> list[dict[str, Any]]:
        """The schema's features as artifact.json has them."""
        return [_feature(f) for f in self.schema.features]

    def tensors(self) -> dict[str, Tensor]:
        """The vocabularies as vocabularies.safetensors has them."""
        found: dict[str, Tensor] = {}
        for table, values in self.vocabularies.items():
            if pa.types.is_integer(values.type):
                numbers = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
                found[f"{self.name}/{table}/integers"] = torch.from_numpy(numbers.copy())
                continue
            texts = [v.encode() for v in values.to_pylist()]
            content = np.frombuffer(b"".join(texts), np.uint8).copy()
            ends = np.cumsum([len(t) for t in texts], dtype=np.int64)
            found[f"{self.name}/{table}/text"] = torch.from_numpy(content)
            found[f"{self.name}/{table}/ends"] = torch.from_numpy(ends)
        return found

    def log_table(self, table: pa.Table) -> pa.Table:
        """A request as rows of the training log."""
        if self.name == "log":
            return table
        origin = Origin("the request", "the request", 0, 0)
        asked = [f for f in self.schema.features if not is_spared(f, labels=False)]
        schema = self.schema.model_copy(update={"features": asked})
        return pa.table(feature_columns(table, schema, self.vocabularies, origin))


def forms_of(checkpoint: Checkpoint, schema: LogSchema) -> tuple[list[Form], str | None]:
    """The forms a model can be asked in, `log` first.

    `raw` needs the transforms of the training log and their vocabularies: beside the checkpoint, or
    where the log lies.

    Returns:
        The forms, and why there is no `raw` where a prepared log would have one.
    """
    written = {t.name: t.values for t in schema.tables if t.values is not None}
    log = Form("log", schema, {name: pa.array(v, pa.string()) for name, v in written.items()})
    if schema.transforms is None:
        return [log], None
    try:
        frozen = read_frozen(checkpoint.folder.url, extend=False)
        if frozen.digest != schema.transforms:
            raise InputError(
                "the transforms found are not the training log's",
                f"{frozen.digest}   ({frozen.url})",
                schema.transforms,
                "restore the log that the run was trained on",
            )
        return [log, Form("raw", frozen.schema, _vocabularies(frozen))], None
    except InputError as error:
        return [log], f"{error.what}: {error.got}"


def _vocabularies(frozen: Frozen) -> dict[str, pa.Array]:
    """Of the tables that have one; raises InputError where it is not the one that was fitted."""
    tables = [name for name in frozen.schema.table_names if frozen.schema.table(name).vocabulary]
    return {name: read_vocabulary(frozen, name).column("value").combine_chunks() for name in tables}


def _feature(f: Feature) -> dict[str, Any]:
    values: dict[str, Any] = {"name": f.name, "kind": f.kind, "column": f.source}
    values["default"] = f.default
    values["is_constant"] = is_spared(f, labels=False)
    if isinstance(f, NumericFeature):
        values |= {"log1p": f.log1p, "missing_indicator": f.missing_indicator, "fill": f.fill}
        if f.standardise:
            values |= {"mean": f.mean, "std": f.std}
        if f.boundaries is not None:
            values |= {"boundaries": f.boundaries, "table": f.table_name}
        return values
    values |= {"table": f.table_name, "encoding": f.encoding}
    if isinstance(f, BagFeature | SequenceFeature):
        values["max_length"] = f.max_length
    if isinstance(f, BagFeature):
        values["weights"] = f.weights
    if isinstance(f, SequenceFeature):
        values["aligned_with"] = f.aligned_with
    return values
