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
    mounted = next(iter(cluster["file_mounts"]))
    assert all(mounted in command for command in cluster["setup_commands"])
