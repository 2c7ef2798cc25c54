"""Point matching: one engine a file, one signature, one result."""

from tilereg.matching.match import FIELDS, METHODS, match_spots
from tilereg.matching.result import Match

__all__ = ["FIELDS", "METHODS", "Match", "match_spots"]
