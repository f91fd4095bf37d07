"""Heads: from one vector per task, or one for all, to logits; picked by name here only.

A head is an nn.Module, built as Head(config, num_tasks, in_features, given), with
`forward(x_VBI, shared_1BI=None)` to logits_BT. x_VBI is (1, B, I) for all tasks or (T, B, I), one
per task. `shared_1BI` is what streams shared by the tasks read, and null means x itself, or its
mean over tasks (`blocks.shared_input`). `given` is that of `InputShape`. Heads with gates also have
`gate_sources(task_names)` and `gate_mass(x_VBI, shared_1BI=None, weight_B=None)`, as models do.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from raymtl import config
from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.models.adatt import AdattConfig, AdattHead
from raymtl.models.aitm import AitmConfig, AitmHead
from raymtl.models.esmm import EsmmConfig, EsmmHead
from raymtl.models.mmoe import MmoeConfig, MmoeHead, OmoeConfig, OmoeHead
from raymtl.models.ple import CgcConfig, PleConfig, PleHead
from raymtl.models.shared_bottom import SharedBottomConfig, SharedBottomHead
from raymtl.models.single_task import SingleTaskHead, SingleTaskHeadConfig
from raymtl.models.snr_trans import SnrTransConfig, SnrTransHead
from raymtl.models.stem_head import StemConfig, StemHead

HEADS: dict[str, tuple[type[Section], type[nn.Module]]] = {
    "adatt": (AdattConfig, AdattHead),
    "aitm": (AitmConfig, AitmHead),
    "cgc": (CgcConfig, PleHead),
    "esmm": (EsmmConfig, EsmmHead),
    "mmoe": (MmoeConfig, MmoeHead),
    "omoe": (OmoeConfig, OmoeHead),
    "ple": (PleConfig, PleHead),
    "shared_bottom": (SharedBottomConfig, SharedBottomHead),
    "single_task": (SingleTaskHeadConfig, SingleTaskHead),
    "snr_trans": (SnrTransConfig, SnrTransHead),
    "stem": (StemConfig, StemHead),
}


def parse_head(section: Mapping[str, Any], prefix: str = "model.head") -> Section:
    """Checks a head's section, its name and its own keys, with that head's Config.

    Args:
        prefix: where the section stands in the config, for errors.

    Raises:
        InputError: no such head, an unknown key or a refused value.
    """
    name = section.get("name")
    if name not in HEADS:
        near = difflib.get_close_matches(str(name), HEADS, 1)
        raise InputError(
            f"there is no head {name}" if name else "a head without a name",
            f"{prefix}.name = {name}",
            f"one of {', '.join(sorted(HEADS))}",
            f"did you mean {near[0]}?" if near else "choose one",
        )
    return config.parse(HEADS[name][0], dict(section), f"head {name}", prefix)


def build_head(
    section: Mapping[str, Any],
    num_tasks: int,
    in_features: int,
    given: tuple[int | None, ...] = (),
) -> nn.Module:
    """Builds the head a section names; initial weights follow from torch's generator.

    Args:
        section: `name` and the head's own keys.
        in_features: I.
        given: per task the task that must be positive for it to be; empty means none.

    Raises:
        InputError: as `parse_head`.
    """
    parsed = parse_head(section)
    _, Head = HEADS[section["name"]]
    return Head(parsed, num_tasks, in_features, given)
