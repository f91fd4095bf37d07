"""The manifests for Kubernetes: KubeRay's fields, one image, one Ray, sizes like cluster.yaml's."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from raymtl_jobs.cli import app

ROOT = Path(__file__).parents[2]
# From KubeRay's API reference, ray.io/v1 (docs/reference/api.md; authOptions since 1.5.1).
CLUSTER = {
    *("suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "rayVersion"),
    *("enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"),
    "authOptions",
}
JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"),
    *("metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy"),
    *("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"),
    *("entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "schedule"),
    *("shutdownAfterJobFinishes", "suspend"),
}
HEAD = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKERS = {
    *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"),
    *("rayStartParams", "template", "scaleStrategy", "numOfHosts"),
}
POD = {"containers", "volumes", "terminationGracePeriodSeconds"}
CONTAINER = {"name", "image", "resources", "env", "envFrom", "volumeMounts", "ports"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


each = pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])


@each
def test_a_manifest_has_only_fields_kuberay_documents(name: str) -> None:
    manifest, cluster = read(name), cluster_of(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["kind"] == {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}[name]
    assert manifest["kind"] == "RayCluster" or manifest["spec"].keys() <= JOB
    assert cluster.keys() <= CLUSTER and cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"].keys() <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod.keys() <= POD
        for container in pod["containers"]:
            assert container.keys() <= CONTAINER
            assert container["resources"]["limits"] == container["resources"]["requests"]


@each
def test_ray_image_and_sizes_are_those_of_the_other_files(name: str) -> None:
    cluster = cluster_of(name)
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None and cluster["rayVersion"] == ray[1]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray[1]}-py311-cpu" in dockerfile
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert int(head["rayStartParams"]["num-cpus"]) == launcher["head"]["resources"]["CPU"] == 0
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert f"docker build -f deploy/Dockerfile -t {container['image']} ." in dockerfile
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) == launcher["cpu_worker"]["resources"]["CPU"]
    assert workers["maxReplicas"] <= launcher["cpu_worker"]["max_workers"]


def test_the_job_runs_a_command_that_goes_on_after_a_retry_and_fits_its_cluster() -> None:
    job = read("rayjob.yaml")["spec"]
    program, verb, *words = shlex.split(job["entrypoint"])
    command = typer.main.get_command(app).commands[verb]  # pyright: ignore[reportAttributeAccessIssue]
    params = command.make_context(verb, words).params
    assert (program, verb, params["or_resume"], params["config"]) == (
        "raymtl",
        "train",
        True,
        "stem",
    )
    assert json.loads(job["entrypointResources"]).keys() == {"node:__internal_head__"}
    values = dict(item.split("=", 1) for item in params["overrides"])
    workers, each = int(values["launch.num_workers"]), int(values["launch.cpus_per_worker"])
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert workers // group["replicas"] * (each + 1) <= cpus, "reading tasks need a CPU a worker"
