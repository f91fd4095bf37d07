"""The only place that picks a model by name: built in, registered, or of another package.

A model is an nn.Module, built as Model(config, shape: InputShape), with `forward(inputs: Inputs)`
to logits_BT and these class attributes: `task_specific` (one view of each embedding per task, or
one for all), `shared_view` (whether a shared view follows the tasks'; only read when task_specific;
True where absent), `whole_sequences` (whether it reads sequences itself, else it gets the mean of
each as a field; True where absent) and `Config`, a Section whose field `name` is a Literal of the
model's name. Members it may also have, all of them found by name:

- `penalty(logits_BT)`: a term of the loss, () or (B,), finite in padding rows too; its sum over
  rows times weight_B is divided by the global batch's weight.
- `num_statistics`, `statistics(batch)`, `take_statistics(total)`: float64 sums (num_statistics,)
  over a rank's rows; their total over ranks comes before the training forward, and never otherwise.
- `optimizer_groups()`: pairs of parameter names and the DenseOptimizerSection that moves them.
- `gate_sources`, `gate_mass(inputs, weight_B=None)`: (layers, T, sources), rows of which sum to 1.
- `gains_compiled`: whether its training steps were measured to be faster by torch.compile.

Another package offers one by an entry point of the group `raymtl.models`.
"""

import difflib
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from torch import nn

from raymtl import config
from raymtl.batch import Inputs, InputShape, Layout
from raymtl.config import ModelSection, Section
from raymtl.errors import InputError
from raymtl.models.adatt import Adatt
from raymtl.models.aitm import Aitm
from raymtl.models.dephn import Dephn, MtPhn
from raymtl.models.dtrn import Dtrn
from raymtl.models.esmm import Esmm
from raymtl.models.mmoe import MeMmoe, Mmoe, Omoe
from raymtl.models.ple import Cgc, MePle, Ple
from raymtl.models.shared_bottom import SharedBottom
from raymtl.models.single_task import SingleTask
from raymtl.models.snr_trans import SnrTrans
from raymtl.models.stem import Stem
from raymtl.schema import LogSchema

ENTRY_POINTS = "raymtl.models"

_BUILT_IN: dict[str, Any] = {
    "adatt": Adatt,
    "aitm": Aitm,
    "cgc": Cgc,
    "dephn": Dephn,
    "dtrn": Dtrn,
    "esmm": Esmm,
    "me_mmoe": MeMmoe,
    "me_ple": MePle,
    "mmoe": Mmoe,
    "mt_phn": MtPhn,
    "omoe": Omoe,
    "ple": Ple,
    "shared_bottom": SharedBottom,
    "single_task": SingleTask,
    "snr_trans": SnrTrans,
    "stem": Stem,
}
_models = dict(_BUILT_IN)


def names() -> list[str]:
    """Every model's name, sorted; packages that offer one are not imported for it."""
    return sorted({*_models, *_offered()})


def register(name: str, cls: type[nn.Module]) -> None:
    """Adds a model under a new name.

    Raises:
        InputError: the name is taken, or the class is not a model as this module's docstring says.
    """
    if _models.get(name, cls) is not cls:
        raise InputError(
            f"the model name {name} is taken", repr(_models[name]), "a new name", "choose another"
        )
    _require_model(name, cls)
    _models[name] = cls


def registered() -> dict[str, Any]:
    """Models added in this process by `register`, which workers must be given."""
    return {name: cls for name, cls in _models.items() if name not in _BUILT_IN}


def parse(section: ModelSection) -> Section:
    """Checks a config's model section with its model's own Config.

    Raises:
        InputError: no such model, an unknown key or a refused value.
    """
    values = section.model_dump()
    return config.parse(_model(section.name).Config, values, section.name, prefix="model")


def layout(section: ModelSection, schema: LogSchema) -> Layout:
    """A schema's layout as the named model reads it.

    Sequences that the schema passes whole come as their mean, one more field, to a model that does
    not read them itself: nothing of their full size is made then.
    """
    whole = Layout.of(schema)
    return whole if getattr(_model(section.name), "whole_sequences", True) else whole.pooled()


def shape(section: ModelSection, layout: Layout, width: int) -> InputShape:
    """The sizes the named model is built from; `num_views` is what the tables must hold.

    Args:
        width: D, floats of one view.
    """
    model = _model(section.name)
    return InputShape.of(layout, width, model.task_specific, getattr(model, "shared_view", True))


def gains_compiled(section: ModelSection) -> bool:
    """Whether the named model's training steps were measured to be faster by torch.compile."""
    return getattr(_model(section.name), "gains_compiled", False)


def require_fit(section: ModelSection, schema: LogSchema, width: int) -> None:
    """Builds the named model for a schema, without its weights where it can, and forgets it.

    Raises:
        InputError: as building it would.
    """
    parts = layout(section, schema)
    try:
        with torch.device("meta"):
            build(section, parts, width)
    except (NotImplementedError, RuntimeError):  # its constructor reads values of tensors
        build(section, parts, width)


def build(section: ModelSection, layout: Layout, width: int) -> nn.Module:
    """Builds the named model; its initial weights follow from torch's generator as it stands.

    Called with inputs of other sizes than the layout's it raises InputError.

    Args:
        width: D, floats of one view.
    """
    sizes = shape(section, layout, width)
    model = _model(section.name)(parse(section), sizes)
    model.register_forward_pre_hook(partial(_require_fit, sizes))
    return model


def _require_fit(sizes: InputShape, _: nn.Module, arguments: tuple[Inputs, ...]) -> None:
    for inputs in arguments:
        sizes.require(inputs)


def _model(name: str) -> Any:
    if name not in _models and name in (offered := _offered()):
        register(name, _load(offered[name]))
    if name not in _models:
        near = difflib.get_close_matches(name, names(), 1)
        raise InputError(
            f"there is no model {name}",
            f"model.name = {name}",
            f"one of {', '.join(names())}",
            f"did you mean {near[0]}?" if near else "choose one, or install the package it is in",
        )
    return _models[name]


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise InputError(
            f"the model {point.name} cannot be imported",
            f"{point.value}: {type(error).__name__}: {error}",
            "a class that imports",
            "mend or remove the package that offers it",
        ) from error


def _require_model(name: str, cls: Any) -> None:
    own = getattr(cls, "Config", None)
    fields = own.model_fields if isinstance(own, type) and issubclass(own, Section) else {}
    named = "name" in fields and fields["name"].default == name
    is_module = isinstance(cls, type) and issubclass(cls, nn.Module)
    if not (is_module and named and isinstance(getattr(cls, "task_specific", None), bool)):
        raise InputError(
            f"{name} is not a model",
            repr(cls),
            "an nn.Module with `task_specific: bool` and `Config`, a Section with the field "
            f'`name: Literal["{name}"] = "{name}"`',
            "see docs/extend.md",
        )
