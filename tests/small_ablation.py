"""The smallest ablation there is, two sites and two steps on phantoms, and where the shipped one lies."""

from pathlib import Path
from typing import Any, Final

import tomli_w

from consilium.common.datasets import phantoms
from consilium.server.ablation.settings import Ablation, load
from consilium.server.experiment.data import DataSet

SHIPPED: Final = Path(__file__).parents[1] / "configs" / "consensus-ablation.toml"
NETWORK: Final = {"name": "unet", "width": 4}
SHORT: Final = {"image-budget": 32, "batch": 8, "learning-rate": 5e-3, "threads": 1}


def document(**other: Any) -> dict[str, Any]:
    """Two sites, two steps, phantoms."""
    return {
        "kind": "ablation",
        "name": "small",
        "seeds": [0],
        "labelled": "home",
        "image": {"size": 48},
        "data": {
            "home": {"data-set": "phantoms", "hospital": "west", "count": 60},
            "far": {"data-set": "phantoms", "hospital": "south", "count": 6},
        },
        "sites": {"alpha": {"network": NETWORK, "training": SHORT}, "bravo": {"network": NETWORK, "training": SHORT}},
        "step": [
            {
                "name": "paper",
                "exclusion": {"beta": 8.0, "alpha": 0.0},
                "student": {"network": NETWORK, "training": SHORT},
            },
            {
                "name": "consensus",
                "fusion": {"calibrated": True, "views": "flip", "weights": "validation"},
                "student": {"image-weights": "agreement", "training": {"dice-share": 0.75}},
                "transferal": [],
            },
        ],
        "fedavg": {"rounds": 2},
        **other,
    }


def settings_of(folder: Path, **other: Any) -> Ablation:
    path = folder / "ablation.toml"
    path.write_text(tomli_w.dumps(document(**other)))
    return load(path)


def a_set(images: int, start: int = 0) -> DataSet:
    """Phantoms as a data set."""
    pixels, masks = phantoms.make("north", images, 48, 0, start=start)
    names = tuple(f"{start + i}" for i in range(images))
    return DataSet("phantoms", pixels, masks, names, names, ("",) * images, names, f"{images} from {start}")
