"""What the papers' artificial data are asked to be: MMoE's two regressions, DEPHN's label pairs."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raymtl.data.synth_config import LogSection


class MmoeLogConfig(LogSection):
    """Two regressions whose weights lie at a chosen angle; see `raymtl.data.artificial.MmoeLog`.

    The paper prints neither the sines' constants nor c and m. PLE's settings (Tang et al., RecSys
    2020): `constants: normal`, scale 1, num_sines 10, num_features 512, rows 1,400,000. Those of
    google-research's generator: `constants: counting`, scale 1, num_sines 10, noise_std 0.01.
    """

    kind: Literal["mmoe"]
    correlation: float = Field(default=0.5, ge=-1, le=1)
    """p, the cosine of the two tasks' weight vectors; what the paper calls task correlation. The
    labels' own correlation is lower (truth.json has it), and -p does not just turn its sign."""
    num_features: int = Field(default=100, ge=2)
    """d, columns x_0 to x_(d-1), independent standard normals; 100 as in the paper's models."""
    scale: PositiveFloat = 0.5
    """c, length of the weight vectors. 0.5 with `counting` gives label correlations nearest to the
    paper's figure 2 (ours)."""
    num_sines: NonNegativeInt = 10
    """m, sines added to each label; 0 leaves the labels linear."""
    constants: Literal["counting", "normal"] = "counting"
    """Frequencies and phases of the sines: 1 .. m and 0, 1, 4 .. (m - 1)^2, the same for every
    seed; or standard normals, whose label correlation varies much from seed to seed."""
    noise_std: NonNegativeFloat = 0.1
    """Standard deviation of the labels' noise: the paper's N(0, 0.01) read as a variance."""


class DephnLogConfig(LogSection):
    """Binary labels made of one score; see `raymtl.data.artificial.DephnLog`.

    The defaults give labels whose correlations are near the paper's .9877 and .5288 (ours: the
    paper scores Criteo with a network, and prints neither the noise nor the score's spread).
    """

    kind: Literal["dephn"]
    second: Literal["related", "unrelated", "both"] = "both"
    """Tasks of the schema besides `base`; the columns are there in any case."""
    num_fields: PositiveInt = 10
    """Categorical features field_0, field_1, ..."""
    num_values: PositiveInt = 1000
    """Values of each, equally frequent."""
    score_mean: float = -1.4
    """Mean of the score, a logit: most labels are 0."""
    score_std: PositiveFloat = 2.4
    """Its standard deviation."""
    noise_std: NonNegativeFloat = 0.2
    """Standard deviation of the related task's noise."""
