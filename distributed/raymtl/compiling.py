"""A model's training forward, and with it its backward, compiled by torch.

`torch.compile` joins what stands between the matrix products into few passes over memory. The
formulas stay, sums are rounded otherwise. Only training steps run compiled: scoring, gate masses
and exports read the model as it is.
"""

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from raymtl.batch import Inputs
from raymtl.config import TrainConfig
from raymtl.errors import InputError
from raymtl.models import registry

LEAST_STEPS = 10_000
"""From which on `auto` compiles: half a minute to compile, some milliseconds saved a step."""

Forward = Callable[[Inputs], Tensor]

logger = logging.getLogger(__name__)


def resolved(config: TrainConfig, num_steps: int) -> bool:
    """What `train.compile` means for a run of so many steps begun on this machine.

    Raises:
        InputError: it is asked for and cannot be.
    """
    wanted = config.train.compile
    if wanted == "auto":
        gains = registry.gains_compiled(config.model) and not config.launch.use_gpu
        return gains and num_steps >= LEAST_STEPS and not obstacle(config)
    if wanted and (found := obstacle(config)):
        raise InputError("train.compile cannot be", *found)
    return wanted


def obstacle(config: TrainConfig) -> tuple[str, str, str] | None:
    """What was found, what is wanted and what to do, where compiling cannot be; else null."""
    if config.balancing.name == "pcgrad":
        wanted = "one backward pass a step"
        return "balancing.name = pcgrad", wanted, "set train.compile=false, or balance otherwise"
    compiler = os.environ.get("CXX") or "g++"
    if not shutil.which(compiler):
        return f"no {compiler} here", "a C++ compiler", "install g++, or set train.compile=false"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        wanted = "Python's headers"
        return f"no {header}", wanted, "install python3-dev, or set train.compile=false"
    return None


def training_forward(model: nn.Module, compiled: bool) -> Forward:
    """The model's forward for training steps; compiling waits for the first call."""
    return CompiledForward(model) if compiled else model


class CompiledForward:
    """Compiled once for every number of rows. A node that cannot compile runs the model as it is.

    What is compiled is kept in the user's cache folder (TORCHINDUCTOR_CACHE_DIR moves it).
    """

    def __init__(self, model: nn.Module):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(home, "raymtl", "compiled")))
        # In this process: a pool would outlive the work, a pool for each rank.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        # torch keeps a few variants of a function; those of earlier models count among them.
        torch.compiler.reset()
        self.model = model
        self.call: Forward = torch.compile(model, dynamic=True)
        self._called = False

    def __call__(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        if self._called:
            return self.call(inputs)
        self._called = True
        try:
            return self.call(inputs)
        except Exception as error:
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.warning("the model is not compiled on this node: %s", first)
            self.call = self.model
            return self.model(inputs)
