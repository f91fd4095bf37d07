"""cluster.yaml is what Ray's launcher accepts."""

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[2]


def test_cluster_yaml_follows_the_schema_ray_ships() -> None:
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for mounted in cluster["file_mounts"]:
        assert any(mounted in command for command in cluster["setup_commands"])


def test_the_cluster_asks_for_a_token_and_its_dashboard_stays_on_loopback() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for role in ("head", "worker"):
        starts = [c for c in cluster[f"{role}_start_ray_commands"] if "ray start" in c]
        assert starts and all(c.startswith("RAY_AUTH_MODE=token ") for c in starts)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
