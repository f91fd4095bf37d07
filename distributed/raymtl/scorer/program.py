"""The dense model: calls of torch operators, every one of a fixed list, with JSON arguments."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from raymtl.scorer.errors import require

SIZES = {n: getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "mod", "neg")}
"""Arithmetic on sizes, beside torch's operators."""
PLAIN = (
    "abs addcmul addcmul_ addmm alias amax amin argmax baddbmm bitwise_not bmm broadcast_to cat "
    "chunk clamp_max clamp_min clone constant_pad_nd contiguous cos cumsum detach diagonal einsum "
    "elu embedding erf exp expand expand_as flip floor full full_like gather gelu "
    "hardtanh index_select layer_norm leaky_relu lift_fresh_copy linear log log1p log_sigmoid "
    "logaddexp logical_and logical_not logical_or logsumexp matmul maximum minimum mm neg "
    "new_full new_ones new_zeros ones ones_like permute reciprocal relu relu_ "
    "repeat reshape roll rsqrt scaled_dot_product_attention sigmoid silu sin softplus sort "
    "split_with_sizes sqrt square stack t tanh topk tril triu unsqueeze view zeros zeros_like "
)
"""Operators called in their default overload."""
OVERLOADS = {
    "__and__": "Tensor",
    "__or__": "Tensor",
    "add": "Scalar Tensor out",
    "add_": "Tensor",
    "all": "default dim",
    "any": "default dim",
    "arange": "default start start_step",
    "argsort": "default stable",
    "bitwise_and": "Tensor",
    "bitwise_or": "Tensor",
    "bucketize": "Tensor",
    "clamp": "default Tensor",
    "div": "Scalar Tensor",
    "eq": "Scalar Tensor",
    "fill_": "Tensor",
    "flatten": "using_ints",
    "ge": "Scalar Tensor",
    "gt": "Scalar Tensor",
    "index": "Tensor",
    "le": "Scalar Tensor",
    "log_softmax": "int",
    "lt": "Scalar Tensor",
    "masked_fill": "Scalar Tensor",
    "masked_fill_": "Scalar",
    "max": "default dim",
    "mean": "default dim",
    "min": "default dim",
    "movedim": "int",
    "mul": "Scalar Tensor",
    "ne": "Scalar Tensor",
    "norm": "ScalarOpt_dim",
    "pow": "Scalar Tensor_Scalar Tensor_Tensor",
    "prod": "dim_int",
    "repeat_interleave": "self_int",
    "rsub": "Scalar",
    "scatter": "src",
    "select": "int",
    "size": "int",
    "slice": "Tensor",
    "softmax": "int",
    "split": "Tensor",
    "squeeze": "default dim",
    "std": "dim",
    "sub": "Scalar Tensor",
    "sum": "default dim_IntList",
    "sym_size": "int",
    "to": "dtype",
    "transpose": "int",
    "unbind": "int",
    "unflatten": "int",
    "var": "dim",
    "where": "ScalarOther ScalarSelf self",
}
"""The others, and theirs."""
OPERATORS = frozenset(
    [f"{name}.default" for name in PLAIN.split()]
    + [f"{name}.{o}" for name, all_of_it in OVERLOADS.items() for o in all_of_it.split()]
)
"""The aten operators a program may call: functions of tensors that touch nothing else."""
DTYPES = {
    n: getattr(torch, n) for n in ("float32", "float64", "float16", "bfloat16", "int64", "bool")
}
FORMATS = {n: getattr(torch, n) for n in ("contiguous_format", "preserve_format")}


class Program:
    """Calls of torch operators in order, as torch.export traced the model."""

    def __init__(self, values: dict[str, Any], weights: dict[str, Tensor]):
        self.num_slots, self.num_inputs = int(values["num_slots"]), int(values["num_inputs"])
        require(0 < self.num_inputs < self.num_slots <= 1_000_000, "of another size")
        self.weights = [(self._slot(slot), weights[key]) for slot, key in values["weights"]]
        self.output = self._slot(values["output"])
        steps = []
        for name, args, kwargs, slot in values["steps"]:
            require(isinstance(args, list) and isinstance(kwargs, dict), "arguments of a step")
            keywords = {str(k): self._value(v) for k, v in kwargs.items()}
            steps.append((_operator(name), self._value(args), keywords, self._slot(slot)))
        self.steps = [
            (*step, done) for step, done in zip(steps, _last_uses(steps, self.output), strict=True)
        ]

    def run(self, inputs: list[Tensor]) -> Tensor:
        """Logits (B, T)."""
        require(len(inputs) == self.num_inputs, f"a program of {self.num_inputs} inputs")
        slots: list[Any] = [None] * self.num_slots
        slots[: self.num_inputs] = inputs
        for slot, weight in self.weights:
            slots[slot] = weight
        for function, args, kwargs, slot, done in self.steps:
            slots[slot] = function(
                *[_filled(a, slots) for a in args],
                **{k: _filled(a, slots) for k, a in kwargs.items()},
            )
            for number in done:
                slots[number] = None
        return slots[self.output]

    def _slot(self, slot: Any) -> int:
        require(type(slot) is int and 0 <= slot < self.num_slots, "a slot that is none")
        return slot

    def _value(self, value: Any) -> Any:
        """An argument with its slots, types and formats in place."""
        if isinstance(value, list):
            return [self._value(v) for v in value]
        if not isinstance(value, dict):
            return value
        match value:
            case {"slot": slot}:
                return _Slot(self._slot(slot))
            case {"dtype": name}:
                return DTYPES[name]
            case {"memory_format": name}:
                return FORMATS[name]
            case {"float": text}:
                return float(text)
        raise ValueError("an argument that is none")


class _Slot(int):
    """The number of a value computed before."""


def _last_uses(steps: list[tuple], output: int) -> list[list[int]]:
    """For each step the slots nobody reads after it."""
    seen, found = {output}, []
    for _, args, kwargs, slot in reversed(steps):
        done = ({*_slots_in([args, *kwargs.values()])} | {slot}) - seen
        seen |= done
        found.append(sorted(done))
    return found[::-1]


def _slots_in(value: Any) -> Iterator[int]:
    if type(value) is _Slot:
        yield int(value)
    elif type(value) is list:
        for inner in value:
            yield from _slots_in(inner)


def _filled(value: Any, slots: list[Any]) -> Any:
    if type(value) is _Slot:
        return slots[value]
    return [_filled(v, slots) for v in value] if type(value) is list else value


def _operator(name: str) -> Any:
    if name in SIZES:
        return lambda *sizes: SIZES[name](*map(operator.index, sizes))
    if name == "getitem":
        return lambda results, place: tuple(results)[place]
    require(name in OPERATORS, f"an operator the scorer does not run: {str(name)[:60]}")
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)
