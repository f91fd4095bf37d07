"""The scorer of exported artifacts: torch, safetensors and numpy alone, nothing else of raymtl.

`raymtl export` joins these modules to the one file `scorer.py` of an artifact (`artifact.bundle`),
so they import no more than these three, and their names differ.
"""

from raymtl.scorer.errors import ArtifactError, RequestError, ScorerError
from raymtl.scorer.scorer import Scorer

__all__ = ["ArtifactError", "RequestError", "Scorer", "ScorerError"]
