"""Ray Train's process group, left quickly when workers hang."""

from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend as TorchBackend

from raymtl.cluster import environment

LEAVING_S = 5
"""For workers to leave the process group before they are stopped."""


class Backend(TorchBackend):
    """Asks every worker to leave the group; one that hangs does not answer, and Ray waits 30 s."""

    def on_shutdown(self, worker_group, backend_config: BackendConfig) -> None:
        with environment({"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": str(LEAVING_S)}):
            super().on_shutdown(worker_group, backend_config)


class ProcessGroup(TorchConfig):
    """As TorchConfig: backend, init_method, timeout_s."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        return Backend
