"""How the learning rate changes over a run."""

import math

# Share of the run in which the learning rate rises, and where it starts as a share of the highest.
WARM_UP, START = 0.3, 0.04


def one_cycle(share: float) -> float:
    """Return the rate, as a share of the highest, when a share of the run, in [0, 1], is done.

    Half a cosine up, half a cosine down, after Smith & Topin 2018, "Super-Convergence: Very Fast Training of
    Neural Networks Using Large Learning Rates".
    """
    if share < WARM_UP:
        return START + (1 - START) * (1 - math.cos(math.pi * share / WARM_UP)) / 2
    return (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2
