"""Where preference data comes from; ``dataset.source._target_`` names one of these."""

from src.data.sources.base import PairSource, Skipped, Source, chosen_demonstrations, has_pairs, read_records
from src.data.sources.hh import HHRLHF
from src.data.sources.local import LocalPairs
from src.data.sources.on_policy import OnPolicy
from src.data.sources.pairing import Pairing, ScoredSource
from src.data.sources.scored import ScoredResponsesFile
from src.data.sources.ultrachat import UltraChat
from src.data.sources.ultrafeedback import UltraFeedbackBinarized
from src.data.sources.ultrafeedback_full import UltraFeedbackFull

__all__ = [
    "HHRLHF",
    "LocalPairs",
    "OnPolicy",
    "PairSource",
    "Pairing",
    "ScoredResponsesFile",
    "ScoredSource",
    "Skipped",
    "Source",
    "UltraChat",
    "UltraFeedbackBinarized",
    "UltraFeedbackFull",
    "chosen_demonstrations",
    "has_pairs",
    "read_records",
]
