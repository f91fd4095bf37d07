"""`raymtl plan`: memory, speed and limits of a run before it starts."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymtl.config import TrainConfig, read_yaml
from raymtl.errors import InputError
from raymtl_jobs.options import ConfigName, Overrides
from raymtl_jobs.output import say, say_result
from raymtl_jobs.train import of_config

if TYPE_CHECKING:
    from raymtl.analysis.plan import Nodes

GBIT = 1e9 / 8

Cluster = Annotated[
    Path | None,
    typer.Option(help="A cluster.yaml of the Ray launcher. Default: this machine alone."),
]
MemoryGb = Annotated[
    float | None, typer.Option(min=0.1, help="Memory of a machine, where --cluster says none.")
]
NetworkGbit = Annotated[float, typer.Option(min=0.1, help="Between the machines of --cluster.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure anew what was measured before.")]
Out = Annotated[Path, typer.Option(help="File for the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]


def plan(
    config: ConfigName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    memory_gb: MemoryGb = None,
    network_gbit: NetworkGbit = 10.0,
    fresh: Fresh = False,
    out: Out = Path("plan.json"),
    as_json: AsJson = False,
) -> None:
    """Predict a run's memory, speed and limits, from its log and a short measurement."""
    from raymtl.run import located

    resolved = located(of_config([config, *(overrides or [])]))
    nodes = nodes_of(cluster, memory_gb, network_gbit)
    result = planned(resolved, nodes, fresh)
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(result))
        return
    _show(result)
    say_result(str(out))


def planned(config: TrainConfig, nodes: "Nodes", fresh: bool = False) -> dict[str, Any]:
    """What the file holds."""
    from raymtl.analysis import plan as plans
    from raymtl.analysis.rates import rates
    from raymtl.preflight import check

    job = check(config)
    cores = os.cpu_count() or 1
    points, pair_threads = plans.points(job, nodes, cores), plans.pair_threads(job, nodes, cores)
    together = ", and of two ranks" if pair_threads else ""
    steps = ", ".join(f"{r} rows on {t} threads" for r, t in points)
    say(f"measuring steps of {steps}{together}")
    measured = rates(job.config, points, pair_threads, fresh)
    found = plans.predictions(job, measured, nodes)
    return {
        "predictions": [p.to_dict() for p in found],
        "fewest_workers": plans.fewest_workers(found),
        "lanes": plans.lanes(job, max(p.num_workers for p in found)),
        "nodes": vars(nodes),
    }


def nodes_of(cluster: Path | None, memory_gb: float | None, network_gbit: float) -> "Nodes":
    """This machine, or the CPU workers of a cluster file.

    Raises:
        InputError: the file names no worker with CPUs.
    """
    from raymtl.analysis.plan import Nodes

    memory = None if memory_gb is None else round(memory_gb * 1e9)
    if cluster is None:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Nodes(1, os.cpu_count() or 1, memory or here)
    types = read_yaml(cluster).get("available_node_types") or {}
    workers = [
        (kind.get("max_workers", 0), kind.get("resources") or {})
        for kind in types.values()
        if (kind.get("resources") or {}).get("CPU") and kind.get("max_workers")
    ]
    if not workers:
        raise InputError(
            "the cluster file names no machines to train on",
            f"{cluster}: node types {', '.join(types) or 'none'}",
            "a node type with max_workers and resources: {CPU: n}",
            "add both to the workers' type",
        )
    count, resources = max(workers, key=lambda w: w[0] * w[1]["CPU"])
    memory = memory or resources.get("memory")
    return Nodes(count, int(resources["CPU"]), memory, network_gbit * GBIT)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "a worker's memory and what it sends in a step, MB"
    table = Table("W", "threads", title=title, title_justify="left")
    for name in ("tables", "state", "saving", "data", "step", "base", "all", "sent"):
        table.add_column(name, justify="right")
    for name in ("ms", "rows/s", "limit"):
        table.add_column(name, justify="right")
    for p in result["predictions"]:
        shown = ("tables", "optimizer", "snapshot", "ingest", "working", "process", "memory")
        memory = [f"{p[f'{name}_bytes'] / 1e6:,.0f}" for name in shown]
        speed = [
            f"{p['exchanged_bytes'] / 1e6:.2f}",
            f"{p['step_s'] * 1e3:.1f}",
            f"{p['rows_per_s']:,.0f}",
        ]
        table.add_row(str(p["num_workers"]), str(p["threads"]), *memory, *speed, p["limit"])
    Console(width=110).print(table)
    print(f"fewest workers whose machines hold them: {result['fewest_workers'] or 'none of these'}")
    print(f"data.num_lanes to choose: {result['lanes']}")
