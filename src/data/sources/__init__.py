"""Where preference data comes from; ``dataset.source._target_`` names one of these."""

from src.data.sources.base import PairSource, Skipped, Source, chosen_demonstrations, read_records
from src.data.sources.hh import HHRLHF
from src.data.sources.local import LocalPairs
from src.data.sources.pairing import Pairing, ScoredSource
from src.data.sources.scored import ScoredResponsesFile
from src.data.sources.ultrafeedback import UltraFeedbackBinarized

__all__ = [
    "HHRLHF",
    "LocalPairs",
    "PairSource",
    "Pairing",
    "ScoredResponsesFile",
    "ScoredSource",
    "Skipped",
    "Source",
    "UltraFeedbackBinarized",
    "chosen_demonstrations",
    "read_records",
]
