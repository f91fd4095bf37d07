"""What `raymtl plan` predicts, by hand and as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers.cli import raymtl
from helpers.logs import small_log
from helpers.training import train_config
from raymtl.analysis import plan
from raymtl.analysis.plan import Nodes
from raymtl.analysis.rates import Pair, Rates, StepPoint
from raymtl.config import EmbeddingSection, WorkerRange
from raymtl.data.ingest import row_bytes
from raymtl.embedding.tables import table_specs
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.preflight import Job, check
from raymtl_jobs.plan import nodes_of, planned

RATES = Rates(
    cores=4,
    memory_bytes=10**10,
    base_bytes=400_000_000,
    num_dense=1000,
    steps=(
        StepPoint(64, 1, 0.020, ((8, 50, 5), (2, 0, 3)), 10_000_000),
        StepPoint(256, 1, 0.044, ((8, 146, 5), (2, 0, 3)), 22_000_000),
        StepPoint(256, 4, 0.0165, ((8, 146, 5), (2, 0, 3)), 22_000_000),
    ),
    read_s_per_row=1e-6,
    latency_s=1e-4,
    bytes_per_s=1e9,
    pair=None,
)
HERE = Nodes(1, 4, 10**10)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=2500)
    return str(folder)


@pytest.fixture(scope="module")
def job(log: str) -> Job:
    return check(train_config(log, "launch.num_workers=1"))


def test_a_step_is_linear_in_rows_and_follows_amdahl_in_threads() -> None:
    assert plan.step_at(RATES.steps, 128, 1).seconds == pytest.approx(0.028)
    assert plan.step_at(RATES.steps, 128, 1).distinct == ((8, 82, 5), (2, 0, 3))
    # Four threads take 0.375 of one: 5/6 of the work is parallel; on two 1 - 5/12 is left.
    assert plan.step_at(RATES.steps, 256, 2).seconds == pytest.approx(0.044 * 7 / 12)


def test_the_bytes_of_a_step_are_ids_rows_gradients_and_dense_gradients() -> None:
    point = StepPoint(64, 1, 0.02, ((8, 50, 5),), 0)
    # Half of 50 rows: 8 bytes of id, 32 of values, 32 of gradient. 5 copied rows: id and gradient.
    wanted = 25 * (8 + 64) + 5 * (8 + 32) + 1000 * 4
    assert plan.exchange(point, 1000, 2, EmbeddingSection()) == (wanted, 6)
    halved = 25 * (8 + 32) + 5 * (8 + 16) + 1000 * 4
    assert plan.exchange(point, 1000, 2, EmbeddingSection(wire_precision="bf16"))[0] == halved
    assert plan.exchange(point, 1000, 1, EmbeddingSection()) == (0, 0)


def test_split_tables_are_shared_out_and_small_ones_lie_everywhere(job: Job) -> None:
    one, two = (plan.predicted(job, RATES, HERE, n) for n in (1, 2))
    layout = registry.layout(job.config.model, job.schema)
    shape = registry.shape(job.config.model, layout, job.config.embedding.width)
    specs = table_specs(job.schema, shape)
    most = job.config.embedding.replicate_rows
    split = sum(4 * s.rows * s.width_floats for s in specs if s.rows > most)
    whole = sum(4 * s.rows * s.width_floats for s in specs if s.rows <= most)
    assert split and whole
    assert (one.tables_bytes, two.tables_bytes) == (split + whole, split / 2 + whole)
    assert one.optimizer_bytes == one.tables_bytes / job.config.embedding.width
    assert one.dense_bytes == 1000 * 16 and one.process_bytes > RATES.base_bytes
    assert one.memory_bytes > 2 * one.tables_bytes + one.optimizer_bytes


def test_training_and_reading_share_the_cores(job: Job) -> None:
    # One worker on four threads takes all four cores for 16.5 ms; reading takes a core besides.
    cores = 4 - plan.RAY_CORES
    reading = 256 * plan.READ_FACTOR * RATES.read_s_per_row
    found = plan.predicted(job, RATES, HERE, 1)
    assert found.step_s == pytest.approx((4 * 0.0165 + reading) / cores)
    assert found.rows_per_s == pytest.approx(256 / found.step_s) and found.limit == "compute"
    slow = plan.predicted(job, replace(RATES, read_s_per_row=1e-3), HERE, 1)
    assert slow.limit == "reading" and slow.rows_per_s < found.rows_per_s / 4
    far = plan.predicted(job, replace(RATES, bytes_per_s=1e4), HERE, 2)
    assert far.limit == "exchange"


def test_what_two_ranks_take_beyond_their_steps_goes_with_the_bytes_sent(job: Job) -> None:
    sent, exchanges = plan.exchange(plan.step_at(RATES.steps, 128, 1), 1000, 2, EmbeddingSection())
    known = 0.028 + sent / 1e9 + exchanges * 1e-4
    for cores, crowding in ((4, 1), (1, 2)):
        pair = Pair(128, 1, (known + 0.004) * crowding)
        rates = replace(RATES, pair=pair, cores=cores)
        assert plan.handling(rates, EmbeddingSection()) == pytest.approx(0.004 / sent)
    assert plan.handling(replace(RATES, pair=Pair(128, 1, 0.01)), EmbeddingSection()) == 0
    pair = Pair(128, 1, known + 0.004)
    for num_workers in (1, 2, 4):
        without = plan.predicted(job, RATES, HERE, num_workers)
        found = plan.predicted(job, replace(RATES, pair=pair), HERE, num_workers)
        more = 0.004 * found.exchanged_bytes / sent
        assert found.compute_s == pytest.approx(without.compute_s + more)
    assert plan.pair_threads(job, HERE, 4) == (job.config.launch.threads_per_worker or 2)
    data = job.config.data.model_copy(update={"num_lanes": 1})
    alone = replace(job, config=job.config.model_copy(update={"data": data}))
    assert plan.pair_threads(alone, HERE, 4) is None


def test_a_worker_holds_no_more_decoded_rows_than_a_pass_has(job: Job) -> None:
    one_pass = row_bytes(registry.layout(job.config.model, job.schema)) * job.train.num_rows
    long = job.config.train.model_copy(update={"num_epochs": 9})
    nine = replace(job, config=job.config.model_copy(update={"train": long}))
    for given in (job, nine):
        one, two = (plan.predicted(given, RATES, HERE, n).ingest_bytes for n in (1, 2))
        # In the process that feeds, and in the store's pages of that one and of the worker.
        assert (one, two) == (3 * one_pass, 1.5 * one_pass)


def override_workers(job: Job, fewest: int, most: int) -> Job:
    launch = job.config.launch.model_copy(update={"num_workers": WorkerRange(min=fewest, max=most)})
    return replace(job, config=job.config.model_copy(update={"launch": launch}))


def test_the_fewest_workers_are_those_whose_machine_holds_them(job: Job) -> None:
    found = plan.predictions(job, RATES, HERE)
    assert [p.num_workers for p in found] == [1, 2, 4] and plan.fewest_workers(found) == 1
    ranged = override_workers(job, 3, 6)
    assert plan.worlds(ranged, HERE) == [1, 2, 3, 4, 6]
    tight = plan.predictions(job, RATES, Nodes(1, 4, 1000))
    assert plan.fewest_workers(tight) is None and {p.limit for p in tight} == {"memory"}


def test_lanes_divide_the_batch_and_suit_the_most_workers(job: Job) -> None:
    assert plan.lanes(job, 4) == 32  # 256 rows a step
    assert plan.lanes(job, 64) == 64
    assert plan.lanes(job, 3) == 256, "no divisor is a multiple of 3: as many as there are"


def test_a_cluster_file_gives_the_machines(tmp_path: Path) -> None:
    here = Path(__file__).parents[2] / "cluster.yaml"
    assert nodes_of(here, None, 8.0) == Nodes(8, 16, None, 1e9)
    assert nodes_of(here, 32.0, 8.0).memory_bytes == 32 * 10**9
    path = tmp_path / "none.yaml"
    path.write_text(yaml.safe_dump({"available_node_types": {"head": {"resources": {"CPU": 0}}}}))
    with pytest.raises(InputError, match="no machines to train on"):
        nodes_of(path, None, 8.0)


@pytest.mark.timeout(300)
def test_a_plan_measures_once_and_writes_what_it_found(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(log)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = raymtl("plan", "config.yaml", folder=tmp_path, timeout_s=280)
    assert result.returncode == 0 and "data.num_lanes to choose" in result.stdout, result.stderr
    written = json.loads((tmp_path / "plan.json").read_text())
    found = written["predictions"]
    assert all(p["rows_per_s"] > 0 and p["memory_bytes"] > 10**8 for p in found)
    assert [p["exchanged_bytes"] > 0 for p in found] == [p["num_workers"] > 1 for p in found]
    assert planned(config, nodes_of(None, None, 10.0)) == written
