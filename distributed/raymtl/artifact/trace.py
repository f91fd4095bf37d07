"""A trained model as the scorer's program: torch.export's graph, call by call, as plain values.

torch.export's own archive is not used: its loader unpickles tensors without restriction, looks
operators up anywhere in torch, and parses sizes with sympy, which evaluates text.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from raymtl.batch import Inputs, InputShape, Sequence
from raymtl.errors import InputError, one_line
from raymtl.scorer.program import OPERATORS, SIZES

EXAMPLE_ROWS = 5
"""Rows of the example the trace is made of; any number of rows may be scored."""
GONE = {"aten._assert_tensor_metadata.default", "aten._assert_scalar.default"}
"""Checks for the tracer itself, without a result."""
SAME = {"aten.dropout.default", "aten.detach.default", "aten.alias.default"}
"""Calls that give their first argument while scoring."""
PLACES = {"device", "layout", "pin_memory"}
"""Arguments that name where a tensor lies: the scorer computes in plain memory."""
SIZE_CALLS: dict[Callable, str] = {getattr(operator, name): name for name in SIZES}


class _Dense(nn.Module):
    """A model that takes tensors instead of `Inputs`."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, views: Tensor, numeric: Tensor, sequences: list[Tensor]) -> Tensor:
        pairs = zip(self.names, sequences[::2], sequences[1::2], strict=True)
        whole = {name: Sequence(values, mask) for name, values, mask in pairs}
        return self.model(Inputs(views, numeric, whole))


def trace(model: nn.Module, shape: InputShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Traces a model, any number of rows, in evaluation mode.

    Args:
        shape: the sizes the model was built from.

    Returns:
        What program.json holds, and its weights by name. Inputs are views_BVFD, numeric_BN, and of
        each whole sequence in `shape`'s order its values and mask; the output is logits_BT.

    Raises:
        InputError: torch.export cannot trace the model, or it calls what the scorer does not run.
    """
    dense = _Dense(model.eval(), tuple(shape.sequence_lengths))
    examples = _examples(shape)
    rows = Dim("rows", min=1)
    dynamic = ({0: rows}, {0: rows}, [{0: rows} for _ in examples[2]])
    try:
        with torch.no_grad():
            program = export(dense, examples, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise InputError(
            "torch.export cannot trace the model",
            f"{type(error).__name__}: {one_line(error)}",
            "a forward without branches or sizes that depend on tensors' values",
            "mend the model (torch.compiler.is_compiling() tells that it is traced)",
        ) from error
    return _Writer(program, 2 + len(examples[2])).written()


def _examples(shape: InputShape) -> tuple[Tensor, Tensor, list[Tensor]]:
    views = torch.zeros(EXAMPLE_ROWS, shape.num_views, shape.num_fields, shape.width)
    sequences = []
    for length in shape.sequence_lengths.values():
        sequences.append(torch.zeros(EXAMPLE_ROWS, length, shape.num_views, shape.width))
        sequences.append(torch.ones(EXAMPLE_ROWS, length, dtype=torch.bool))
    return views, torch.zeros(EXAMPLE_ROWS, shape.num_numeric), sequences


class _Writer:
    """Numbers the values of a graph and writes its calls."""

    def __init__(self, program: ExportedProgram, num_inputs: int):
        self.program, self.num_inputs = program, num_inputs
        self.slots: dict[fx.Node, int] = {}
        self.num_slots = num_inputs
        self.weights: dict[str, Tensor] = {}
        self.weight_slots: list[tuple[int, str]] = []
        self.steps: list[list[Any]] = []

    def written(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The program's plain values, and its weights."""
        inputs = iter(range(self.num_inputs))
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._place(node, inputs)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                (output,) = node.args[0]  # pyright: ignore[reportAssignmentType]
                return self._values(output), self.weights
            else:
                raise _refusal(f"{node.op} {node.target}")
        raise AssertionError("a graph without output")

    def _values(self, output: fx.Node) -> dict[str, Any]:
        return {
            "num_inputs": self.num_inputs,
            "num_slots": self.num_slots,
            "weights": self.weight_slots,
            "steps": self.steps,
            "output": self.slots[output],
        }

    def _place(self, node: fx.Node, inputs: Any) -> None:
        signature = self.program.graph_signature
        name = str(node.target)
        tensors: dict[str, Any] = {**self.program.state_dict, **self.program.constants}
        maps = (
            signature.inputs_to_parameters,
            signature.inputs_to_buffers,
            signature.inputs_to_lifted_tensor_constants,
        )
        key = next((m[name] for m in maps if name in m), None)
        if key is None:
            self.slots[node] = next(inputs)
        elif node.users:
            self.weights[key] = tensors[key].detach().clone().contiguous()
            self.weight_slots.append((self._new_slot(node), key))

    def _call(self, node: fx.Node) -> None:
        name = _name_of(node.target)
        if f"aten.{name}" in GONE:
            return
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and (f"aten.{name}" in SAME or _keeps_type(name, node)):
            self.slots[node] = self.slots[first]
            return
        args = [self._value(a) for a in node.args]
        kwargs = {k: self._value(v) for k, v in node.kwargs.items() if k not in PLACES}
        if name in ("new_empty.default", "empty_like.default"):
            name = name.replace("new_empty", "new_zeros").replace("empty_like", "zeros_like")
        if name not in OPERATORS and name not in SIZES and name != "getitem":
            raise _refusal(name)
        self.steps.append([name, args, kwargs, self._new_slot(node)])

    def _value(self, value: Any) -> Any:
        match value:
            case fx.Node():
                return {"slot": self.slots[value]}
            case list() | tuple():
                return [self._value(v) for v in value]
            case float() if value - value != 0:  # infinite or NaN, which JSON has not
                return {"float": str(value)}
            case None | bool() | int() | float() | str():
                return value
            case torch.dtype():
                return {"dtype": str(value).removeprefix("torch.")}
            case torch.memory_format():
                return {"memory_format": str(value).removeprefix("torch.")}
        raise _refusal(f"an argument {value!r}")

    def _new_slot(self, node: fx.Node) -> int:
        self.slots[node] = self.num_slots
        self.num_slots += 1
        return self.slots[node]


def _name_of(target: Any) -> str:
    """`add.Tensor`, `getitem`, `mul` and so on."""
    if target is operator.getitem:
        return "getitem"
    if target in SIZE_CALLS:
        return SIZE_CALLS[target]
    return str(target).removeprefix("aten.")


def _keeps_type(name: str, node: fx.Node) -> bool:
    """Whether it is a conversion to the type a tensor has already."""
    match node.args:
        case (fx.Node() as first, torch.dtype() as dtype) if name == "to.dtype" and not node.kwargs:
            return first.meta["val"].dtype == dtype
    return False


def _refusal(got: str) -> InputError:
    return InputError(
        "the model calls what the scorer does not run",
        got,
        "operators of raymtl.scorer.program.OPERATORS",
        "write the model with those, or ask for one to be added",
    )
