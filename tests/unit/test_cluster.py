"""Where a Ray of this machine listens."""

import socket

import pytest

from raymtl import cluster

ELSEWHERE = "127.0.0.2"
"""Stands for the address by which a network reaches this machine."""


@pytest.mark.parametrize(
    ("bound", "wanted"), [(cluster.LOOPBACK, True), ("0.0.0.0", False), (ELSEWHERE, False)]
)
def test_a_ray_on_loopback_alone_is_told_from_one_that_the_network_reaches(
    bound: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "get_node_ip_address", lambda: ELSEWHERE)
    with socket.create_server((bound, 0)) as server:
        port = server.getsockname()[1]
        assert cluster.only_on_loopback(f"127.0.0.1:{port}") is wanted
        assert cluster.only_on_loopback(f"localhost:{port}") is wanted
        assert not cluster.only_on_loopback(f"{ELSEWHERE}:{port}")


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:"])
def test_other_addresses_are_left_to_ray(address: str) -> None:
    assert not cluster.only_on_loopback(address)
