r"""Ali-CCP: samples, and the features that the samples of a user share, joined by an index.

Form: two files per split without a header (tianchi.aliyun.com/dataset/408; read as in
github.com/xidongbo/AITM, process_public_dataset.py):
`sample_skeleton_SPLIT.csv`: sample, click, conversion, index into the common features, number of
features, features; `common_features_SPLIT.csv`: index, number of features, features.
Samples with a conversion but no click are dropped, as AITM's authors do.

The join holds neither file in memory: both are dealt by a hash of the index to parts in scratch
files, and part after part is joined. So the rows come out part by part, within a part in the
file's order; `sample_id` says where they stood. Ours.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data import scratch
from raymtl.data.convert import columns as kind
from raymtl.data.convert.aliccp_text import COMMON, SKELETON, features
from raymtl.data.convert.columns import typed
from raymtl.data.convert.deal import Deal
from raymtl.data.convert.plan import Options, Piece, Plan, Tally, cut_notes, require_rows
from raymtl.data.convert.row_groups import RowGroups
from raymtl.data.convert.text import Form, TextFile, blocks, files_in
from raymtl.errors import InputError

SAMPLE_FORM = Form(
    ("sample_id", "click", "conversion", "index", "num", "features"),
    has_header=False,
    quotes=False,
)
COMMON_FORM = Form(("index", "num", "features"), has_header=False, quotes=False)
INDEX = kind.Column("index", pa.string(), required=True)
SAMPLE = (kind.ids("sample_id"), kind.flag("click"), kind.flag("conversion"), INDEX)
SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("click", pa.int8()),
        ("conversion", pa.int8()),
        ("fold", pa.int8()),
        *COMMON.schema,
        *SKELETON.schema,
    ]
)
NUM_FOLDS = 10
PART_BYTES = 128 << 20
"""Text of the common file per part: bounds what the join holds in memory."""
MAX_PARTS = 256
JOIN_BYTES = 64 << 20
"""Bytes of joined rows made at once."""


def plan(url: str) -> Plan:
    """Finds both files of the splits train and test, or of train alone, perhaps with .gz.

    Raises:
        InputError: a file is missing, or there packed and unpacked.
    """
    files, pieces, notes = files_in(url), [], []
    for split in ("train", "test"):
        names = [f"{stem}_{split}.csv" for stem in ("sample_skeleton", "common_features")]
        found = [[files[n] for n in (name, f"{name}.gz") if n in files] for name in names]
        if split == "test" and not any(found):
            notes.append("no files of the test split: no test.parquet")
            continue
        for name, there in zip(names, found, strict=True):
            if len(there) != 1:
                raise InputError(
                    "a raw file is missing, or there twice",
                    f"{url}: {', '.join(f.name for f in there) or f'no {name}'}",
                    f"{' and '.join(names)}, perhaps with .gz",
                    "unpack the archives sample_train and sample_test into one folder",
                )
        pieces.append(Piece(f"{split}.parquet", tuple(there[0] for there in found)))
    return Plan(tuple(pieces), tuple(notes + cut_notes([f for p in pieces for f in p.inputs])))


def write(piece: Piece, url: str, options: Options) -> Tally:
    """Joins and writes one split."""
    samples, common = piece.inputs
    num_parts = min(MAX_PARTS, 1 + common.text_bytes // PART_BYTES)
    tally, folder = Tally(), f"{url}/_scratch/{piece.output.removesuffix('.parquet')}"
    with Deal(f"{folder}/common", num_parts, "index") as commons:
        for table in _common(common, options, tally):
            commons.add(table)
    with Deal(f"{folder}/samples", num_parts, "index") as sampled:
        for table in _samples(samples, options, tally):
            sampled.add(table)
    with RowGroups(f"{url}/{piece.output}", SCHEMA) as out:
        for part in range(num_parts):
            shared = _last_of_each(commons.read(part), tally)
            for table in sampled.stream(part):
                for joined in _joined(table, shared, common):
                    out.write(joined)
    scratch.remove(folder)
    tally.rows = out.num_rows
    require_rows(tally, piece)
    return tally


def folds(sample_id: np.ndarray) -> np.ndarray:
    """A number below NUM_FOLDS for each sample, by a hash of its id: a fixed random split. Ours.

    Args:
        sample_id: int64 (n,).

    Returns:
        int8 (n,).
    """
    mixed = sample_id.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(NUM_FOLDS)).astype(np.int8)


def _common(file: TextFile, options: Options, tally: Tally) -> Iterator[pa.Table]:
    for block in blocks(file, COMMON_FORM, options.watch):
        made = features(block, COMMON, options.max_values, tally)
        yield made.append_column("index", typed(block, [INDEX])["index"])


def _samples(file: TextFile, options: Options, tally: Tally) -> Iterator[pa.Table]:
    for block in blocks(file, SAMPLE_FORM, options.watch):
        head = typed(block, SAMPLE)
        possible = pc.greater_equal(head["click"], head["conversion"]).to_numpy()
        tally.count("samples with a conversion but no click", int((~possible).sum()))
        made = features(block.keep(possible), SKELETON, options.max_values, tally)
        head = head.filter(pa.array(possible))
        fold = pa.array(folds(head["sample_id"].to_numpy()))
        columns = [*head.columns, fold, *made.columns]
        yield pa.table(columns, names=[*head.column_names, "fold", *made.column_names])


def _last_of_each(common: pa.Table, tally: Tally) -> pa.Table:
    """One row per index, the last one, as AITM's reader keeps."""
    row_of = dict(zip(common["index"].to_pylist(), range(common.num_rows), strict=True))
    tally.count("rows of the common file before the last of its index", len(common) - len(row_of))
    if len(row_of) == common.num_rows:
        return common
    return common.take(pa.array(list(row_of.values()))).combine_chunks()


def _joined(samples: pa.Table, common: pa.Table, file: TextFile) -> Iterator[pa.Table]:
    """Adds the common features, so many rows at once that memory stays bounded."""
    index = samples["index"].combine_chunks()
    rows = pc.index_in(index, value_set=common["index"].combine_chunks())
    if rows.null_count:
        lost = pc.index(pc.is_null(rows), True).as_py()
        raise InputError(
            "a sample has no common features",
            f"sample {samples['sample_id'][lost]} has index {index[lost]}, not in {file.url}",
            "the common features of every sample's index",
            "use the two files of one split; the common file may be cut off",
        )
    shared = common.drop_columns(["index"])
    step = max(256, JOIN_BYTES // (1 + common.nbytes // max(1, common.num_rows)))
    for start in range(0, samples.num_rows, step):
        here = samples.slice(start, step).drop_columns(["index"])
        for name, column in zip(
            shared.column_names, shared.take(rows.slice(start, step)).columns, strict=True
        ):
            here = here.append_column(name, column)
        yield here
