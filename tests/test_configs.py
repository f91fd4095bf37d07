"""Every shipped config is read by its own class."""

from pathlib import Path

import pytest

from raymtl.config import Section, TrainConfig, load, read_yaml

CONFIGS = Path(__file__).parents[1] / "jobs" / "raymtl_jobs" / "configs"


def config_class(file: Path) -> type[Section]:
    """The class a shipped config is read with, by the end of its name."""
    if file.stem.endswith("_prepare"):
        from raymtl.data.prepare import PrepareConfig

        return PrepareConfig
    if file.stem.endswith("_synth"):
        from raymtl.data.synthetic import KINDS

        return KINDS[read_yaml(file).get("kind", "planted")][0]
    if file.stem.endswith("_study"):
        from raymtl.study.config import StudyConfig

        return StudyConfig
    return TrainConfig


def missing_log(file: Path) -> list[str]:
    """The override that a training config for any log leaves to its user."""
    data = read_yaml(file).get("data", {})
    return [] if config_class(file) is not TrainConfig or "train" in data else ["data.train=LOG"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_config_is_valid_and_so_is_its_model_section(file: Path) -> None:
    from raymtl.models import registry
    from raymtl.study.config import StudyConfig
    from raymtl.study.plan import searched

    config = load(config_class(file), file, missing_log(file))
    if isinstance(config, TrainConfig):
        registry.parse(config.model)
    if isinstance(config, StudyConfig):
        searched(config)  # parses every model's config at every point
