"""Figures 1 and 3: the middle example of each kind, one axis for all histograms, nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from consilium.common.errors import DataError
from consilium.server.exclusion import Statistics
from consilium.server.experiment.figures import entropy_histograms, exclusion_examples

ALPHA, BETA = 256.0, 2.5
FOUND = Statistics(np.array([3, 1, 2, 900, 900, 900, 100, 700]), np.array([1.0, 1.0, 1.0, 2.9, 2.8, 3.0, 3.0, 2.0]))
# at 384 x 384: images 0 to 2 have few target pixels, 3 to 5 high entropy, 6 both, 7 is kept


def pictures(count: int, size: int = 384) -> tuple[np.ndarray, np.ndarray]:
    """Image i is gray level i everywhere, its mask 100 + i."""
    level = np.arange(count, dtype=np.uint8)[:, None, None, None]
    shape = (count, 1, size, size)
    return np.broadcast_to(level, shape), np.broadcast_to(level + np.uint8(100), shape)


class Table(HTMLParser):
    """The text of cells, and the gray level of every picture, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.levels: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "img":
            assert held["alt"]
            data = (held["src"] or "").removeprefix("data:image/png;base64,")
            self.levels.append(int(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).max()))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def test_the_example_of_each_kind_is_the_middle_one_by_what_decided() -> None:
    seen = Table(str(exclusion_examples(*pictures(8), FOUND, alpha=ALPHA, beta=BETA)))
    assert seen.levels == [2, 3, 7, 102, 103, 107]  # N = 2 of 1, 2, 3; E = 2.9 of 2.8, 2.9, 3.0
    assert seen.text[-3:] == ["N = 2 px, E = 1.00 bits", "N = 900 px, E = 2.90 bits", "N = 700 px, E = 2.00 bits"]
    assert "left out: too few target pixels (3)" in seen.text
    assert "kept (1)" in seen.text


def test_several_examples_go_from_least_to_most() -> None:
    seen = Table(str(exclusion_examples(*pictures(8), FOUND, alpha=ALPHA, beta=BETA, each=3)))
    assert seen.levels[:7] == [1, 2, 0, 4, 3, 5, 7]


def test_a_kind_without_an_image_has_a_dash() -> None:
    page = str(exclusion_examples(*pictures(8), FOUND, alpha=0, beta=None))
    assert len(Table(page).levels) == 2
    assert page.count("<td>—</td>") == 6
    assert "no beta" in page


def test_images_masks_and_statistics_belong_together() -> None:
    images, masks = pictures(8)
    with pytest.raises(DataError, match="belong together"):
        exclusion_examples(images[:7], masks, FOUND, alpha=ALPHA, beta=BETA)


def test_every_data_set_has_its_histogram_on_one_axis() -> None:
    low = Statistics(np.full(4, 900), np.array([0.1, 0.2, 0.3, 0.4]))
    page = str(entropy_histograms({"<busi>": FOUND, "low": low}, alpha=ALPHA, beta=BETA, size=384))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == ["&lt;busi&gt;: 1 of 8 images kept", "low: 4 of 4 images kept"]
    charts = [re.findall(r"<text[^>]*>(.*?)</text>", part) for part in page.split("<figcaption>")[1:]]
    first, second = (texts[: texts.index("entropy (bits)")] for texts in charts)
    assert first == second
    assert "3.0" in second  # though its own highest entropy is 0.4
    assert not re.search(r"https?://", page)
