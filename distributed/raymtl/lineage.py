"""Which logs fit a model: of its own transforms, of those it extends, of those that extend its."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from raymtl.batch import Batch, Layout
from raymtl.errors import InputError
from raymtl.preflight import schema_at
from raymtl.schema import LogSchema
from raymtl.storage import Folder

OUT_OF_VOCABULARY = 0
"""Row of a value that a model does not know."""


def reading_schema(schema: LogSchema, log: str) -> LogSchema:
    """What a log is read with, to be scored by a model.

    Args:
        schema: the model's.
        log: URL of the log; where no schema.yaml lies beside it, it is taken to fit.

    Returns:
        The model's schema; its tables as long as the log's where the log's vocabularies extend the
        model's (ids past the model's rows are then made known by `known_rows`).

    Raises:
        InputError: the log was prepared with other transforms.
    """
    if Folder(log).size("schema.yaml") is None:
        return schema
    beside = f"{log.rstrip('/')}/schema.yaml"
    found = schema_at(beside)
    if found.transforms == schema.transforms or found.transforms in schema.extends:
        return schema
    if schema.transforms is not None and schema.transforms in found.extends:
        longer = {n: found.table(n).num_rows for n in schema.table_names if n in found.table_names}
        tables = [
            schema.table(name).model_copy(update={"rows": longer.get(name, schema.table(name).rows)})
            for name in schema.table_names
        ]
        return schema.model_copy(update={"tables": tables})
    raise InputError(
        "the log was prepared with other transforms than the model's training log",
        f"{found.transforms or 'none'}   ({beside})",
        schema.transforms or "none: a raw log",
        "evaluate on a log of the same `raymtl prepare`",
    )


def known_rows(batch: Batch, layout: Layout, rows: Mapping[str, int]) -> Batch:
    """The batch with ids of values that came later made out-of-vocabulary, as a model sees them.

    Args:
        rows: table -> rows that are known; tables left out are known whole.
    """
    last_C = torch.full((layout.num_id_columns,), torch.iinfo(torch.int64).max)
    for c in layout.id_columns:
        if c.table in rows:
            last_C[c.start : c.stop] = rows[c.table]
    unknown_BC = batch.ids_BC >= last_C.to(batch.ids_BC.device)
    return replace(batch, ids_BC=batch.ids_BC.masked_fill(unknown_BC, OUT_OF_VOCABULARY))
