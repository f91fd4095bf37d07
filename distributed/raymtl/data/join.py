"""Side tables that fit in memory, and their left join to a stream of rows. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymtl.data.files import arrow_schema
from raymtl.data.prepare_config import Join
from raymtl.data.raw import indexes, plain_type, unreadable
from raymtl.errors import InputError
from raymtl.storage import filesystem


def side_size(join: Join, data_root: str) -> int:
    """Uncompressed bytes of a side table's taken columns, by its footers."""
    total = 0
    for root, path in _paths(join, data_root):
        fs, _ = filesystem(root)
        try:
            with fs.open_input_file(path) as handle:
                metadata = pq.read_metadata(handle)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from None
        names = _taken(join, arrow_schema(metadata).names, path)
        for g in range(metadata.num_row_groups):
            columns = [metadata.row_group(g).column(c) for c in range(metadata.num_columns)]
            total += sum(
                c.total_uncompressed_size
                for c in columns
                if c.path_in_schema.split(".")[0] in names
            )
    return total


def check_sizes(sizes: dict[str, int], limit: int) -> None:
    """Refuses side tables that are too large together."""
    if sum(sizes.values()) > limit:
        raise InputError(
            "the joined tables do not fit",
            ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()),
            f"at most join_limit_bytes = {limit:,} together",
            "take fewer columns (joins: columns), raise join_limit_bytes, or join beforehand",
        )


def read_side(join: Join, data_root: str) -> pa.Table:
    """Reads a side table whole: the key first, then the taken columns under their new names.

    Raises:
        InputError: unreadable, a column is missing, a key is null or there twice.
    """
    tables = []
    for root, path in _paths(join, data_root):
        fs, _ = filesystem(root)
        try:
            with fs.open_input_file(path) as handle:
                parquet = pq.ParquetFile(handle)
                names = _taken(join, parquet.schema_arrow.names, path)
                table = parquet.read(names)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from None
        types = pa.schema([pa.field(f.name, plain_type(f.type)) for f in table.schema])
        tables.append(table.select(names).cast(types))
    side = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    key = join.key or join.column
    _check_keys(side.column(key), join, key)
    taken = [side.column(name) for name in side.column_names[1:]]
    names = [join.prefix + name for name in side.column_names[1:]]
    return pa.table([side.column(key), *taken], names=[f"key of {join.name}", *names])


def _paths(join: Join, data_root: str) -> list[tuple[str, str]]:
    """URL of the filesystem and path of each file."""
    found = indexes(join.url, data_root)
    return [(index.url, index.location(n)) for index in found for n in range(len(index.files))]


def _taken(join: Join, names: list[str], path: str) -> list[str]:
    key = join.key or join.column
    wanted = [key, *(c for c in join.columns or names if c != key)]
    missing = [c for c in wanted if c not in names]
    if missing:
        raise InputError(
            f"join {join.name} has no column {missing[0]}",
            f"{path} has {', '.join(names)}",
            ", ".join(wanted),
            "mend the join's key or columns",
        )
    return wanted


def _check_keys(keys: pa.ChunkedArray, join: Join, key: str) -> None:
    if not (pa.types.is_integer(keys.type) or pa.types.is_string(keys.type)):
        raise InputError(
            f"join {join.name} has a key that is no id",
            f"{key}: {keys.type}",
            "integers or text",
            "join on another column",
        )
    if keys.null_count:
        raise InputError(
            f"join {join.name} has null keys",
            f"{keys.null_count} rows with {key} = null",
            "a key in every row",
            "remove those rows from the side table",
        )
    counts = pc.value_counts(keys)
    doubles = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubles):
        raise InputError(
            f"join {join.name} has a key more than once",
            f"{key} = {doubles[0]['values'].as_py()} in {doubles[0]['counts'].as_py()} rows; "
            f"{len(doubles)} keys are there more than once",
            "one row per key",
            "remove the duplicates from the side table",
        )


def check_names(
    joins: dict[str, pa.Table], known: list[str], derived: list[str], made: list[str]
) -> None:
    """Refuses a joined, derived or made column whose name is taken."""
    taken = set(known)
    named = [(f"join {name}", t.column_names[1:]) for name, t in joins.items()]
    for who, names in [*named, ("derive", derived), ("a list or rate", made)]:
        clash = sorted(taken & set(names))
        if clash:
            raise InputError(
                f"{who} makes columns that are there already",
                ", ".join(clash),
                "new names",
                "use the join's prefix or columns, or another name",
            )
        taken |= set(names)


def left_join(table: pa.Table, on: str, side: pa.Table, name: str) -> pa.Table:
    """Adds the side's columns to each row, null where the key has no match."""
    keys, known = table.column(on).combine_chunks(), side.column(0)
    if pa.types.is_null(keys.type):
        keys = keys.cast(known.type)
    if pa.types.is_integer(keys.type) != pa.types.is_integer(known.type):
        raise InputError(
            f"join {name} compares different types",
            f"{on} is {keys.type}, the key of {name} is {known.type}",
            "integers on both sides, or text on both",
            "mend the files, or join on another column",
        )
    if pa.types.is_integer(keys.type):
        keys, known = keys.cast(pa.int64()), known.cast(pa.int64())
    rows = pc.index_in(keys, value_set=known)
    for column in side.column_names[1:]:
        table = table.append_column(column, side.column(column).take(rows))
    return table
