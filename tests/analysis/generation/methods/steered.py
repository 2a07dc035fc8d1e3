"""The parts of a candidate's steering."""

from actcache.analysis.generation.methods import Candidate


def parts(candidate: Candidate, row: int | None = None, strength: float = 0.5):
    """Parts of the steering of a row, which must have one, all of that strength."""
    steering = candidate.steering(row, strength)
    assert steering is not None
    assert all(part.strength == strength for part in steering.parts)
    return steering.parts
