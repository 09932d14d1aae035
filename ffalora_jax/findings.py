"""One thing that somebody should know of a run, though it is no error."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that somebody should know."""

    rule: str
    text: str
    reference: str
    level: str = "warning"
    """``warning``, said before the run and in its report; ``note``, said by ``ffalora check`` alone."""
    from_data: bool = False
    """It looks at private data without noise, so it is no part of what may be handed on."""
