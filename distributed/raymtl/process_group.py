"""Ray Train's process group, left quickly when workers hang."""

from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend as TorchBackend

from raymtl.cluster import environment

LEAVING_S = 5
"""For workers to leave the process group before they are stopped."""


class Backend(TorchBackend):
    """No group for a worker of its own; an end that does not wait long for workers that hang."""

    def on_start(self, worker_group, backend_config: TorchConfig) -> None:
        # Collectives of one rank are the identity, and gloo's threads wake 100 times a second.
        if len(worker_group) > 1:
            super().on_start(worker_group, backend_config)

    # Asks every worker to leave the group; one that hangs does not answer, and Ray waits 30 s.
    def on_shutdown(self, worker_group, backend_config: BackendConfig) -> None:
        with environment({"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": str(LEAVING_S)}):
            super().on_shutdown(worker_group, backend_config)


class ProcessGroup(TorchConfig):
    """As TorchConfig: backend, init_method, timeout_s."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        return Backend
