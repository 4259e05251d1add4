"""The scene of an ablation: who gets which images, and what is nobody's but the coordinator's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import DataError
from consilium.common.networks.settings import NetworkSettings
from consilium.server.ablation.scene import Parts, SitePart, lay_out, share_out
from consilium.server.ablation.settings import SiteSettings, SplitSettings
from tests.small_ablation import a_set

SITE = SiteSettings(network=NetworkSettings(name="unet"))
SHARES = SplitSettings()


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=60, max_size=90), st.integers(0, 9))
def test_every_image_is_in_one_part_and_no_group_is_torn(groups: list[str], seed: int) -> None:
    kinds = ["benign" if i % 3 else "malignant" for i in range(len(groups))]
    try:
        parts = share_out(groups, kinds, {"alpha": SITE, "bravo": SITE}, SHARES, seed)
    except DataError:  # large groups may leave a part without any
        return
    every = [
        parts.transferal,
        *(each for site in parts.sites.values() for each in (site.train, site.validation, site.test)),
    ]
    assert sorted(np.concatenate(every).tolist()) == list(range(len(groups)))
    for name in set(groups) - {""}:
        assert sum(any(groups[i] == name for i in part) for part in every) == 1


def test_parts_have_the_shares_they_are_given() -> None:
    """Of 200 images 40 are transferal; of the other 160, 120 and 40 by share 3 to 1; of these 5/16 test, a fifth of the rest."""
    sites = {"large": SITE.model_copy(update={"share": 3.0}), "small": SITE}
    parts = share_out([""] * 200, ["x"] * 200, sites, SHARES, 0)
    assert len(parts.transferal) == 40
    sizes = {name: (len(one.train), len(one.validation), len(one.test)) for name, one in parts.sites.items()}
    assert sizes["large"] == pytest.approx((66, 16.5, 37.5), abs=1)
    assert sizes["small"] == pytest.approx((22, 5.5, 12.5), abs=1)


def test_a_site_of_one_kind_sees_no_other_and_the_pooled_test_keeps_the_mix() -> None:
    kinds = ["benign"] * 140 + ["malignant"] * 60
    groups = ["pair"] + [""] * 198 + ["pair"]  # a benign image with a malignant near duplicate
    sites = {"alpha": SITE, "charlie": SITE.model_copy(update={"kinds": ("benign",)})}
    parts = share_out(groups, kinds, sites, SHARES, 3)
    charlie = parts.sites["charlie"]
    assert {kinds[i] for part in (charlie.train, charlie.validation, charlie.test) for i in part} == {"benign"}
    assert 0 not in np.concatenate([charlie.train, charlie.validation, charlie.test])
    test = np.concatenate([one.test for one in parts.sites.values()])
    for part, images in ((test, 50), (parts.transferal, 40)):
        assert len(part) == pytest.approx(images, abs=2)
        assert np.mean([kinds[i] == "malignant" for i in part]) == pytest.approx(0.3, abs=0.02)


def test_a_site_cannot_have_more_of_a_kind_than_there_is() -> None:
    with pytest.raises(DataError, match=r"charlie sees rare only, and should get 80 images; 4 such"):
        share_out([""] * 200, ["rare"] * 5 + ["x"] * 195, {"a": SITE, "charlie": replace_kinds("rare")}, SHARES, 0)


def replace_kinds(kind: str) -> SiteSettings:
    return SITE.model_copy(update={"kinds": (kind,)})


def test_the_pooled_test_is_the_sites_tests_one_behind_the_other() -> None:
    part = {"alpha": SitePart(*(np.array(one) for one in ([0], [1], [2, 7]))),
            "bravo": SitePart(*(np.array(one) for one in ([3], [4], [5])))}  # fmt: skip
    scene = lay_out(a_set(8), Parts(part, np.array([6])))
    assert scene.test.sources == ("2", "7", "5")
    assert scene.test.sources[scene.slices["bravo"]] == scene.sites["bravo"].test.sources == ("5",)
    assert np.array_equal(scene.test.truth[2], a_set(8).truth[5])
    assert (scene.pooled.sources, scene.unlabelled.sources) == (("0", "3"), ("6",))


def test_the_coordinators_images_are_nobody_elses_and_without_a_share_all_stays_as_it_is() -> None:
    """Of 200 images 40 are transferal and, with a share of 0.1, 20 the coordinator's; of each site's, 0.25 / 0.7 are test."""
    sites = {"alpha": SITE, "bravo": SITE}
    none = share_out([""] * 200, ["x"] * 200, sites, SHARES, 3)
    some = share_out([""] * 200, ["x"] * 200, sites, SHARES.model_copy(update={"labelled": 0.1}), 3)
    assert (len(none.labelled), len(some.labelled)) == (0, 20)
    assert (some.transferal == none.transferal).all()
    every = [some.labelled, some.transferal]
    every += [each for site in some.sites.values() for each in (site.train, site.validation, site.test)]
    assert sorted(np.concatenate(every).tolist()) == list(range(200))
    assert (
        sum(len(site.test) for site in some.sites.values()) == 50 == sum(len(one.test) for one in none.sites.values())
    )
    assert lay_out(a_set(200), none).labelled is None
