"""Pictures of runs and searches, ``ffa.plot``: each function draws on matplotlib axes and returns them.

``accuracy``, ``privacy``, ``traffic``, ``sites`` and ``clipping`` take a run, several, or a search (the
first run of each combination); ``classes`` and ``norms`` one run; ``grid`` and ``lines`` a search. Nothing
is drawn that does not stand in the run folders, so a picture can be made again whenever they are opened.
Those of ``report.html`` follow the page's theme; these are for notebooks and papers, in the same colours.
"""

from ffalora_jax.plots._bounds import clipping, norms
from ffalora_jax.plots._runs import accuracy, classes, privacy, sites, traffic
from ffalora_jax.plots._searches import grid, lines

__all__ = [
    "accuracy",
    "classes",
    "clipping",
    "grid",
    "lines",
    "norms",
    "privacy",
    "sites",
    "traffic",
]
