"""That a loader resumed at any step gives exactly what is left."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from raymtl.batch import Batch

Loader = Callable[[int], Iterator[Batch]]
"""Start step -> the batches from there to the end."""


def assert_same_batch(got: Batch, wanted: Batch) -> None:
    """Bitwise: steps, tensors, origins and keys."""
    for name, value in vars(wanted).items():
        found = getattr(got, name)
        if isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype, name
            assert torch.equal(found, value), name
        elif isinstance(value, np.ndarray):
            assert found.dtype == value.dtype, name
            np.testing.assert_array_equal(found, value, err_msg=name)
        elif isinstance(value, dict):
            assert found.keys() == value.keys()
            for key in value:
                np.testing.assert_array_equal(found[key], value[key], err_msg=key)
        else:
            assert found == value, name


def assert_resumes_exactly(make_loader: Loader, num_steps: int) -> None:
    """Resumes at every step and compares the ordered rest with the undisturbed run's."""
    whole = list(make_loader(0))
    assert [b.step for b in whole] == list(range(num_steps))
    for start in range(num_steps + 1):
        rest = list(make_loader(start))
        assert len(rest) == num_steps - start
        for got, wanted in zip(rest, whole[start:], strict=True):
            assert_same_batch(got, wanted)
