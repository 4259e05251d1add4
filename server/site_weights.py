"""Site weights: how much each site counts in the weighted mean, from its own validation Dice.

The weight is that Dice squared. Few images say little, so each Dice is first drawn towards the mean of all sites by as much as
`PRIOR_IMAGES` images of that mean would; and whatever a site says of itself, no weight is less than a quarter of the best one's.
A site that says nothing has the median weight of those that do.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Final

from consilium.common.validation import Validation

PRIOR_IMAGES: Final = 10
"""Images of the mean Dice that are added to each site's own."""
BEST: Final = 1000
"""The weight of the best site; all are whole numbers."""
LEAST: Final = BEST // 4


def site_weights(sites: Sequence[str], validation: Mapping[str, Validation]) -> dict[str, int]:
    """Weigh sites, in whole numbers.

    Parameters
    ----------
    sites
        All that take part.
    validation
        Of those that report it.

    Returns
    -------
    dict
        From `LEAST` to `BEST`; 1 for all where no site reports a Dice above 0, as in the plain mean.
    """
    told = {site: validation[site] for site in sorted(sites) if site in validation}
    images = sum(found.n for found in told.values())
    if not images or not any(found.dice > 0 for found in told.values()):
        return dict.fromkeys(sites, 1)
    mean = sum(found.n * found.dice for found in told.values()) / images
    drawn = {site: (one.n * one.dice + PRIOR_IMAGES * mean) / (one.n + PRIOR_IMAGES) for site, one in told.items()}
    best = max(drawn.values())
    weights = {site: max(LEAST, round(BEST * (dice / best) ** 2)) for site, dice in drawn.items()}
    middle = median_low(weights.values())
    return {site: weights.get(site, middle) for site in sites}
