"""`raymtl prepare`: raw parquet to a training log, by Ray Data, in memory that rows do not grow.

Each stage deals numbered items (shares of the rows, parts of the values, tables) to Ray Data tasks
that read and write files themselves; only small summaries come back. So no process ever holds more
than a share's batch, a part's values, or the side tables and vocabularies in the object store.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions
import yaml
from rich.console import Console

from raymtl.config import dump
from raymtl.data import drift, places, scratch, statistics
from raymtl.data.apply import apply_share, serving_values
from raymtl.data.carried import DISTRIBUTIONS, TRANSFORMS
from raymtl.data.checks import check_splits, make_recipe
from raymtl.data.drift_table import drift_table
from raymtl.data.fit import Moments, fit_share, lists_of, merge_bucket, quantile_borders
from raymtl.data.fitted import digest_of, file_digest, fitted_schema, result_schema, vocabulary_path
from raymtl.data.frozen import (
    Frozen,
    apply_frozen,
    copy_vocabularies,
    extended,
    read_frozen,
)
from raymtl.data.history_stages import build_part, deal_share, merge_totals
from raymtl.data.join import check_sizes, read_side, side_size
from raymtl.data.log import read_index
from raymtl.data.output import Output, write_text
from raymtl.data.prepare_config import Join, PrepareConfig
from raymtl.data.raw import Share, cut
from raymtl.data.rows import Recipe
from raymtl.data.times import later
from raymtl.data.vocabulary import ordered, written_out
from raymtl.errors import IdOutOfRange, InputError, input_error_in
from raymtl.schema import LogSchema, NumericFeature, training_only
from raymtl.storage import Folder, filesystem

__all__ = ["PrepareConfig", "prepare"]

logger = logging.getLogger(__name__)

CHUNKS_PER_SHARE = 16
"""Row groups per part file: 262,144 rows at the default chunk_rows."""


def prepare(
    config: PrepareConfig, url_out: str, like: str | None = None, extend: bool = False
) -> dict[str, Any]:
    """Writes a training log with its splits, schema, transforms, vocabularies and statistics.

    Locally the folder appears whole or not at all; elsewhere result.json is written last, and what
    was written is removed on failure. The same config and input give the same bytes.

    Args:
        url_out: folder or URL to make; refused if it exists, unless `overwrite` is set and an
            earlier `prepare` wrote it.
        like: a prepared log, or a run trained on one, whose transforms are taken over as they are.
        extend: give values that `like` does not know rows behind its own; everything else of it is
            taken over.

    Returns:
        What result.json holds.

    Raises:
        InputError: something is wrong with the config, the files or their values.
    """
    start = time.monotonic()
    frozen = read_frozen(like, extend) if like is not None else None
    if frozen is not None:
        config = apply_frozen(config, frozen)
    with Output(url_out, config.overwrite) as out, _quiet_ray_data():
        sides = _read_sides(config)
        empty = {name: schema.empty_table() for name, (_, schema) in sides.items()}
        recipe = make_recipe(config, empty, f"{out.staging}/_scratch")
        shares = cut(recipe.files, config.chunk_rows * CHUNKS_PER_SHARE)
        side_refs = {name: ref for name, (ref, _) in sides.items()}
        _make_history(recipe, shares, side_refs)
        if frozen is not None:
            copy_vocabularies(frozen, out.staging)
        fitted, counted = _fit(recipe, shares, side_refs, out.staging, frozen)
        tally, distributions = _apply(recipe, shares, side_refs, fitted, out.staging)
        lineage = _write_transforms(recipe, fitted, out.staging, frozen)
        written = result_schema(fitted, lineage, _serving(recipe, fitted, out.staging))
        if config.sample is not None:
            written = written.model_copy(update={"weight": config.sample.weight})
        result = _write_splits(recipe, written, out)
        report = statistics.report(
            tally, fitted, counted["users"], counted["distinct"], counted["dropped"]
        )
        report["drift"] = _drift(distributions, fitted, frozen)
        train = distributions.splits.get("train", {})
        write_text(out.staging, DISTRIBUTIONS, drift.dump_distributions(train))
        write_text(out.staging, "statistics.json", json.dumps(report, indent=1))
        result |= {"transforms": lineage[0], "time_s": round(time.monotonic() - start, 1)}
        out.finish(json.dumps(result, indent=1))
    console = Console()
    console.print(statistics.rich_table(report))
    for split, found in report["drift"].items():
        against = like or "train"
        console.print(drift_table(found, f"{split} beside the training part of {against}"))
        for line in drift.warnings(found, split):
            logger.warning(line)
    return result


def _drift(
    distributions: drift.Distributions, fitted: LogSchema, frozen: Frozen | None
) -> dict[str, Any]:
    """Each split against the training part whose transforms it has: its own, or that of `like`."""
    then = distributions.splits.get("train", {})
    if frozen is not None:
        then = drift.read_distributions(Folder(frozen.url)) or {}
    return {
        split: drift.compared(then, counts, fitted)
        for split, counts in distributions.splits.items()
        if then and (frozen is not None or split not in ("train", "pretrain"))
    }


def _read_sides(config: PrepareConfig) -> dict[str, tuple[Any, pa.Schema]]:
    """Each side table in the object store, and its columns."""
    sizes = {j.name: side_size(j, config.data_root) for j in config.joins}
    check_sizes(sizes, config.join_limit_bytes)
    read = ray.remote(num_returns=2)(_read_side)
    found: dict[str, Any] = {j.name: read.remote(j, config.data_root) for j in config.joins}
    try:
        answers = {name: (side, *ray.get(about)) for name, (side, about) in found.items()}
    except ray.exceptions.RayTaskError as error:
        raise (input_error_in(error) or error) from None
    check_sizes({name: size for name, (_, _, size) in answers.items()}, config.join_limit_bytes)
    return {name: (ref, schema) for name, (ref, schema, _) in answers.items()}


def _read_side(join: Join, data_root: str) -> tuple[pa.Table, tuple[pa.Schema, int]]:
    side = read_side(join, data_root)
    return side, (side.schema, side.nbytes)


def _make_history(recipe: Recipe, shares: list[Share], sides: dict[str, Any]) -> None:
    """Leaves each share its rows' lists and rates, in scratch."""
    if not recipe.num_parts:
        return
    answers = list(_stage(deal_share, shares, recipe, sides))
    priors = merge_totals(answers, recipe.config)
    first_rows = [share.first_row for share in shares]
    list(_stage(build_part, list(range(recipe.num_parts)), recipe, first_rows, priors))


def _fit(
    recipe: Recipe,
    shares: list[Share],
    sides: dict[str, Any],
    staging: str,
    frozen: Frozen | None,
) -> tuple[LogSchema, dict[str, Any]]:
    """Counts and fits on the training part; writes the vocabularies.

    Returns:
        The raw schema with all that was fitted, and "users", "distinct", "dropped" for statistics.
    """
    config, buckets = recipe.config, list(range(recipe.num_buckets))
    if places.wanted(recipe):
        list(_stage(places.count_users, shares, recipe, sides))
        list(_stage(places.place_users, buckets, recipe))
    moments: dict[str, Moments] = {}
    rows: dict[str, int] = {}
    latest = None
    for answer in _stage(_fit_share, shares, recipe, sides):
        for name, values in answer["moments"].items():
            moments.setdefault(name, Moments()).add(Moments(*values))
        rows = {name: rows.get(name, 0) + n for name, n in answer["rows"].items()}
        latest = later(latest, answer["newest"])
    check_splits(rows, config)
    users: dict[str, int] = {}
    distinct: dict[str, int] = {}
    for answer in _stage(merge_bucket, buckets, recipe):
        for into, found in ((users, answer["users"]), (distinct, answer["distinct"])):
            into |= {name: into.get(name, 0) + n for name, n in found.items()}
    fixed = [("values", t) for t in _listed_tables(config.log_schema)]
    tables = [item for item in lists_of(config) if item[0] != "users"] + fixed
    sizes, borders = {}, {}
    answers = _stage(_finish, tables, recipe, staging, frozen)
    for (what, name), answer in zip(tables, answers, strict=True):
        (borders if what == "quantiles" else sizes)[name] = answer
    counted = {"users": users, "distinct": distinct, "dropped": rows["dropped"]}
    fitted = fitted_schema(config.log_schema, sizes, moments, borders)
    as_of = latest if fitted.as_of is None else fitted.as_of
    return fitted.model_copy(update={"as_of": as_of}), counted


def _fit_share(share: Share, recipe: Recipe, sides: dict[str, pa.Table]) -> dict[str, Any]:
    return fit_share(share, recipe, sides, places.read_places(share, recipe))


def _listed_tables(schema: LogSchema) -> list[str]:
    """Tables whose vocabulary the schema writes out."""
    return [name for name in schema.table_names if schema.table(name).values is not None]


def _finish(
    item: tuple[str, str], recipe: Recipe, staging: str, frozen: Frozen | None
) -> int | list[float]:
    """Writes one vocabulary and returns its length, or returns one feature's borders."""
    what, name = item
    schema, is_text = recipe.config.log_schema, item[1] in recipe.text_tables
    if what == "values":
        values = schema.table(name).values
        assert values is not None
        vocabulary = written_out(values, is_text)
    else:
        merged = scratch.read_merged(recipe.scratch, lists_of(recipe.config).index((what, name)))
        if what == "quantiles":
            f = next(f for f in schema.features if f.name == name)
            assert isinstance(f, NumericFeature) and f.buckets is not None
            return quantile_borders(merged, f.buckets)
        vocabulary = ordered(merged, is_text)
        if frozen is not None:
            vocabulary = extended(frozen, name, vocabulary)
    fs, root = filesystem(staging)
    path = f"{root}/{vocabulary_path(name)}"
    fs.create_dir(str(PurePosixPath(path).parent))
    pq.write_table(vocabulary, path, filesystem=fs)
    return vocabulary.num_rows


def _apply(
    recipe: Recipe, shares: list[Share], sides: dict[str, Any], fitted: LogSchema, staging: str
) -> tuple[statistics.Tally, drift.Distributions]:
    """Writes the splits' part files; what they hold is counted on the way."""
    load = ray.remote(_read_table)
    tables = [fitted.table(name) for name in fitted.table_names]
    vocabularies = {
        t.name: load.remote(f"{staging}/{t.vocabulary}") for t in tables if t.vocabulary
    }
    memory = {"sides": sides, "vocabularies": vocabularies}
    tally = statistics.Tally.of(fitted, recipe.config.split_names)
    distributions = drift.Distributions()
    for answer in _stage(_apply_share, shares, recipe, fitted, staging, memory):
        tally.merge(answer["tally"])
        distributions.merge(answer["distributions"])
    return tally, distributions


def _serving(recipe: Recipe, fitted: LogSchema, staging: str) -> dict[str, int | float | None]:
    """The serving values of `training_only` features, in the log's own terms."""
    paths = {
        f.table_name: fitted.table(f.table_name).vocabulary for f in training_only(fitted.features)
    }
    tables = {name: _read_table(f"{staging}/{path}") for name, path in paths.items() if path}
    known = {name: table.column("value").combine_chunks() for name, table in tables.items()}
    return serving_values(recipe, fitted, known)


def _apply_share(
    share: Share,
    recipe: Recipe,
    fitted: LogSchema,
    staging: str,
    memory: dict[str, dict[str, pa.Table]],
) -> dict[str, Any]:
    before = places.read_places(share, recipe)
    return apply_share(share, recipe, fitted, staging, memory, before)


def _read_table(url: str) -> pa.Table:
    fs, path = filesystem(url)
    return pq.ParquetFile(path, filesystem=fs).read()


def _write_transforms(
    recipe: Recipe, fitted: LogSchema, staging: str, frozen: Frozen | None
) -> list[str]:
    """Writes transforms.yaml.

    Returns:
        The digest of all that turns raw values into the log's, then of what it extends.
    """
    if frozen is not None and not frozen.extend:
        write_text(staging, TRANSFORMS, _yaml(frozen.values))
        return frozen.lineage
    config = recipe.config
    fs, root = filesystem(staging)
    files = [t.vocabulary for t in map(fitted.table, fitted.table_names) if t.vocabulary]
    sources = {s.name: s.model_dump(mode="json", exclude={"url"}) for s in config.sources}
    transforms = {
        "schema": fitted.model_dump(mode="json", exclude={"as_of"}),
        "sources": sources,
        "joins": [j.model_dump(mode="json", exclude={"url"}) for j in config.joins],
        "derive": {name: d.model_dump(mode="json") for name, d in config.derive.items()},
        "sequences": config.sequences and config.sequences.model_dump(mode="json"),
        "rates": [rate.model_dump(mode="json") for rate in config.rates],
        "split": config.split.model_dump(mode="json"),
        "vocabularies": {name: file_digest(fs, f"{root}/{name}") for name in files},
    }
    extends = frozen.lineage if frozen is not None else []
    if extends:
        transforms["extends"] = extends
    digest = digest_of(transforms)
    write_text(staging, TRANSFORMS, _yaml({"digest": digest, **transforms}))
    return [digest, *extends]


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _write_splits(recipe: Recipe, schema: LogSchema, out: Output) -> dict[str, Any]:
    """Writes each split's schema and index."""
    splits = {}
    for name in recipe.config.split_names:
        url = f"{out.staging}/{name}"
        write_text(url, "schema.yaml", dump(schema))
        index = read_index(url, schema)
        index.save()
        splits[name] = {"url": f"{out.url}/{name}", "rows": index.num_rows, "digest": index.digest}
    return {"url": out.url, "splits": splits}


def _stage(function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> Iterator[Any]:
    """Runs `function(item, *arguments)` for each item in Ray Data tasks; answers in order.

    Args:
        function: of a module, returning plain JSON values.
        arguments: the same for all; object references in dicts become what they refer to.

    Raises:
        InputError: the first item's, in their order, that raised one.
    """
    shared = ray.put((list(items), arguments))
    numbers = ray.data.range(len(items), override_num_blocks=max(1, len(items)))
    answers = numbers.map_batches(
        _run,  # pyright: ignore[reportArgumentType]  # its batches are numpy
        batch_size=1,
        batch_format="numpy",
        fn_kwargs={"function": function, "shared": [shared]},
    )
    answers.context.execution_options.preserve_order = True
    answers.context.enable_progress_bars = False
    for row in answers.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            kind = IdOutOfRange if answer["error"] == "IdOutOfRange" else InputError
            raise kind(*answer["parts"])
        yield answer["answer"]


def _run(
    batch: dict[str, np.ndarray], function: Callable[..., Any], shared: list[Any]
) -> dict[str, list[str]]:
    """A user's error travels as an answer: which one is raised does not depend on who was first."""
    items, arguments = _shared(shared[0])
    answers = []
    for number in batch["id"]:
        try:
            answer = {"answer": function(items[number], *(_fetch(a) for a in arguments))}
        except InputError as error:
            answer = {"error": type(error).__name__, "parts": error.parts}
        answers.append(json.dumps(answer))
    return {"answer": answers}


@lru_cache(maxsize=1)
def _shared(reference: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """A stage's items and arguments, unpacked once a process."""
    return ray.get(reference)


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keeps Ray Data's plan and progress of every small stage off the terminal."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _fetch(value: Any) -> Any:
    """Object references within dicts as what they refer to, without copies of arrow buffers."""
    if isinstance(value, dict):
        return {k: _fetch(v) for k, v in value.items()}
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value
