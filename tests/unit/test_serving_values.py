"""Features that are known in training only, and what stands for them at serving."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymtl import alone, api
from raymtl.config import TrainConfig, dump, parse
from raymtl.data.decode import decode
from raymtl.errors import InputError
from raymtl.layout import PAD, Layout
from raymtl.loaded import unlabelled
from raymtl.preflight import indexed
from raymtl.schema import LogSchema
from raymtl.scores import auc
from raymtl.scoring import Pick, checked, evaluate_batches
from raymtl.serving import ServingValues
from raymtl.source import read_batches

SCHEMA = LogSchema.model_validate(
    {
        "features": [
            {"kind": "categorical", "name": "item", "encoding": "index"},
            {"kind": "categorical", "name": "position", "encoding": "vocabulary"}
            | {"training_only": True, "serving_value": 2},
            {"kind": "numeric", "name": "height", "standardise": True, "mean": 10.0, "std": 4.0}
            | {"missing_indicator": True, "training_only": True, "serving_value": 18.0},
            {"kind": "categorical", "name": "slot", "table": "position", "encoding": "vocabulary"}
            | {"training_only": True},
        ],
        "tables": [{"name": "item", "rows": 6}, {"name": "position", "values": ["1", "2", "3"]}],
        "tasks": [{"name": "click", "label": "click"}],
    }
)


def rows(n: int, seed: int) -> pa.Table:
    """Clicks that follow the position far more than the item."""
    rng = np.random.default_rng(seed)
    item, position = rng.integers(1, 6, n), rng.integers(1, 4, n)
    chance = np.where(position == 1, 0.8, 0.1) + 0.03 * item
    columns = {"item": item, "position": position, "slot": position, "height": position * 4.0}
    return pa.table(columns | {"click": (rng.random(n) < chance).astype(np.int8)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bias")
    for split, seed in (("train", 1), ("test", 2)):
        (folder / split).mkdir()
        pq.write_table(rows(2000, seed), folder / split / "part-0.parquet", row_group_size=200)
        (folder / split / "schema.yaml").write_text(dump(SCHEMA))
    values = {
        "storage": str(folder),
        "name": "run",
        "data": {"train": str(folder / "train"), "num_lanes": 2, "chunk_rows": 200},
        "model": {"name": "shared_bottom", "bottom_hidden_units": [8], "tower_hidden_units": []},
        "embedding": {"width": 4},
        "train": {"global_batch_size": 100, "num_epochs": 4},
    }
    return alone.train(parse(TrainConfig, values, "a test"))["run"]


def test_serving_values_are_decoded_as_a_row_of_the_log_would_be() -> None:
    layout = Layout.of(SCHEMA)
    found = ServingValues.of(SCHEMA, layout)
    assert found.ids == {1: 2, 2: PAD}, "value 2 is row 2 of its vocabulary; none is PAD"
    assert found.numbers == {0: 2.0, 1: 0.0}, "(18 - 10) / 4, not missing"
    plain = SCHEMA.model_copy(update={"features": SCHEMA.features[:1]})
    assert not ServingValues.of(plain, Layout.of(plain))


def test_only_the_columns_of_such_features_change() -> None:
    layout, table = Layout.of(SCHEMA), rows(5, 3)
    batch = unlabelled(decode(table, SCHEMA, layout, "here"), layout)
    served = ServingValues.of(SCHEMA, layout).apply(batch)
    assert torch.equal(served.ids_BC[:, 0], batch.ids_BC[:, 0])
    assert served.ids_BC[:, 1].tolist() == [2] * 5 and served.ids_BC[:, 2].tolist() == [PAD] * 5
    assert served.numeric_BN.tolist() == [[2.0, 0.0]] * 5
    assert batch.ids_BC[:, 1].tolist() == table["position"].to_pylist(), "the batch stays as it was"


def test_a_log_that_is_only_predicted_may_lack_the_column(run: str, tmp_path: Path) -> None:
    test = Path(run).parent / "test"
    (tmp_path / "bare").mkdir()
    table = pq.read_table(test / "part-0.parquet")
    pq.write_table(table.select(["item"]), tmp_path / "bare" / "part-0.parquet")
    for log, out in ((test, "whole"), (tmp_path / "bare", "lacking")):
        alone.predict(run, str(log), str(tmp_path / out))
    whole, lacking = (pq.read_table(tmp_path / n).sort_by("log_row") for n in ("whole", "lacking"))
    assert whole.equals(lacking), "predict does not look at the column, whether it is there or not"
    model = api.load(run)
    at_once = model.predict(table.select(["item"]))["click"]
    np.testing.assert_allclose(at_once, whole["click"].to_numpy(), atol=1e-6)
    with pytest.raises(InputError, match="position"):
        indexed(str(tmp_path / "bare"), SCHEMA)


def test_evaluation_reports_both_settings(run: str) -> None:
    test = str(Path(run).parent / "test")
    _, payload, _ = checked(run, Pick("last"), test, labels=True)
    metrics = evaluate_batches(payload, torch.device("cpu"), read_batches)
    labels = pq.read_table(f"{test}/part-0.parquet")["click"].to_numpy()
    served = api.load(run, "last").predict(pq.read_table(f"{test}/part-0.parquet"))["click"]
    assert metrics["serving/click/auc"] == pytest.approx(auc(served, labels), abs=1e-6)
    assert metrics["click/auc"] > 0.75 > 0.6 > metrics["serving/click/auc"]
    assert metrics["serving/click/rows"] == metrics["click/rows"] == 2000
