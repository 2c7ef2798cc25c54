"""Point matching: one engine a file, one signature, one result."""

from tilereg.matching.match import METHODS, Match, match_spots

__all__ = ["METHODS", "Match", "match_spots"]
