"""The server of docs/serving.md, run as it stands there."""

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve

from helpers.artifacts import copied, prepared_artifact, signed
from helpers.prepared import raw_columns
from raymtl.scorer import Scorer

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def example() -> dict[str, Any]:
    """The names of the page's block with a deployment."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (text,) = (block for block in blocks if "@serve.deployment" in block)
    namespace: dict[str, Any] = {"__name__": "serving_example"}
    exec(compile(text, str(PAGE), "exec"), namespace)
    return namespace


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(port: int, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/score", data=body)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.usefixtures("local_ray")
def test_the_server_of_the_page_scores_refuses_and_takes_a_new_day(tmp_path: Path) -> None:
    _, artifact = prepared_artifact(tmp_path, "shared_bottom")
    scorer, port, run = Scorer(artifact), free_port(), example()["run"]
    made = {name: values.to_pylist() for name, values in raw_columns(4).items()}
    request = {name: made[name] for name in scorer.columns()}
    try:
        run(str(artifact), port)
        status, answer = post(port, json.dumps(request).encode())
        assert (status, answer["step"]) == (200, 2)
        for task, scores in scorer.score(request).items():
            np.testing.assert_allclose(answer["scores"][task], scores, rtol=0, atol=1e-6)
        status, refused = post(port, json.dumps(request | {"slot": [7, 1, 1, 1]}).encode())
        assert status == 422 and "slot" in refused["what"] and "0 to 5" in refused["wanted"]
        assert post(port, b"{")[0] == 400
        run(str(_of_the_next_day(artifact, tmp_path / "tomorrow")), port)
        assert post(port, json.dumps(request).encode())[1]["step"] == 3
    finally:
        serve.shutdown()


def _of_the_next_day(artifact: Path, folder: Path) -> Path:
    info = json.loads((copied(artifact, folder) / "artifact.json").read_text(encoding="utf-8"))
    (folder / "artifact.json").write_text(json.dumps(info | {"step": 3}), encoding="utf-8")
    return signed(folder)
