"""Which logs fit a model: of its own transforms, of those it extends, of those that extend its."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from raymtl.batch import Batch, Layout
from raymtl.config import parse, parse_yaml
from raymtl.data.frozen import named_difference
from raymtl.errors import InputError
from raymtl.schema import LogSchema
from raymtl.storage import Folder

OUT_OF_VOCABULARY = 0
"""Row of a value that a model does not know."""


def schema_at(url: str) -> LogSchema:
    """A schema file that is ready for training."""
    parent, _, name = url.rpartition("/")
    try:
        text = Folder(parent or ".").read(name).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "there is no schema for the log",
            f"{url}: {error}",
            "a schema.yaml beside the log, or data.schema_path",
            "draft one with `raymtl schema LOG`",
        ) from None
    schema = parse(LogSchema, parse_yaml(text, url), url)
    schema.require_ready()
    return schema


def require_same(schema: LogSchema, log: str, home: str) -> None:
    """Refuses a log that was not prepared with a schema's transforms, or with ones they extend.

    Args:
        schema: what the log is to be read with.
        log: URL of the log; where no schema.yaml lies beside it, it is taken to fit.
        home: where the schema's transforms lie: a log, run or checkpoint.

    Raises:
        InputError: naming where the transforms differ, if both can be read.
    """
    found = _beside(log)
    if found is not None and found.transforms not in (schema.transforms, *schema.extends):
        raise _another(schema, found, log, home)


def reading_schema(schema: LogSchema, log: str, home: str) -> LogSchema:
    """What a log is read with, to be scored by a model; arguments as `require_same`.

    Returns:
        The model's schema; its tables as long as the log's where the log's vocabularies extend the
        model's (ids past the model's rows are then made known by `known_rows`).

    Raises:
        InputError: as `require_same`, but for a log that extends the model's transforms.
    """
    found = _beside(log)
    if found is None or schema.transforms is None or schema.transforms not in found.extends:
        require_same(schema, log, home)
        return schema
    grown = {name: found.table(name).rows for name in found.table_names}
    tables = [
        schema.table(n).model_copy(update={"rows": grown.get(n, schema.table(n).rows)})
        for n in schema.table_names
    ]
    return schema.model_copy(update={"tables": tables})


def _beside(log: str) -> LogSchema | None:
    url = log.rstrip("/")
    return None if Folder(url).size("schema.yaml") is None else schema_at(f"{url}/schema.yaml")


def _another(schema: LogSchema, found: LogSchema, log: str, home: str) -> InputError:
    where = named_difference(home, log) if schema.transforms and found.transforms else ""
    return InputError(
        "the log was prepared with other transforms than the model's training log",
        f"{found.transforms or 'none'}   ({log.rstrip('/')}/schema.yaml)"
        + (f": {where}" if where else ""),
        schema.transforms or "none: a raw log",
        "use a log of the same `raymtl prepare`, or prepare it with --like",
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
