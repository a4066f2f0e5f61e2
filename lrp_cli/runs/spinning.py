"""How long torch's threads keep a core busy while they wait for the next operation."""

import os

TIMES = "20000"
"""How often they look for work before they sleep: a fraction of a millisecond, which is longer than what lies between
two operations of an explanation, and shorter than what lies between two batches."""

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Have torch's threads leave their cores soon to whoever has work; to be called before torch is imported.

    By default those of GNU's OpenMP, which torch has on Linux, go on looking for some milliseconds: after each batch, a
    core that decodes, draws and writes would wait for them. What the user has set stays; other systems take no notice.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = TIMES
