"""FedAvg, the ablation's baseline: what one round computes, how long it trains, and what stops it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.common.errors import ConsiliumError, DataError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.study import StudentSettings
from consilium.common.training.loop import fit
from consilium.common.training.settings import TrainingSettings
from consilium.server.ablation import fedavg
from consilium.server.ablation.settings import Recipe, SiteTrainingSettings
from tests.small_ablation import NETWORK, SHORT, a_set


def test_one_round_of_fedavg_is_the_mean_of_the_sites_weights_by_their_images(tmp_path: Path) -> None:
    """24 images in all over sites of 6 and 2: one trains on 18, the other on 6, and they count 3 to 1."""
    network = NetworkSettings.model_validate(NETWORK)
    training = TrainingSettings(image_budget=24, batch=2, learning_rate=5e-3, threads=1, ema=0.9)
    sites = {"large": a_set(6), "small": a_set(2, start=10)}
    found = fedavg.federated(network, training, sites, rounds=1, seed=5, folder=tmp_path).state_dict()
    own = []
    for node, (name, budget) in enumerate({"large": 18, "small": 6}.items(), 1):
        module = build(network, 1, 1, 5)
        how = TrainingSettings(image_budget=budget, batch=2, learning_rate=5e-3, threads=1)
        seed = int(np.random.SeedSequence([5, 0, node]).generate_state(1)[0] >> 1)
        fit(module, sites[name].images, sites[name].truth * np.uint8(255), how, seed=seed)
        own.append(module.state_dict())
    for name, tensor in found.items():
        wanted = 0.75 * own[0][name].double() + 0.25 * own[1][name].double()
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def test_rounds_and_sites_together_see_what_the_student_sees_on_its_schedule() -> None:
    training = TrainingSettings(image_budget=1000, batch=10, learning_rate=0.1, schedule="cosine", warm_up=0.1)
    first, last = (fedavg.local_training(training, 30, 100, at, 10) for at in (0, 9))
    assert (first.image_budget, last.image_budget) == (30, 30)  # 1000 images, 10 rounds, three tenths of the images
    assert (first.schedule, first.learning_rate) == ("constant", 0.1)
    assert last.learning_rate == pytest.approx(0.1 * (1 + np.cos(np.pi * 8 / 9)) / 2)
    plain_end = training.model_copy(update={"augment_until": 0.8, "cutmix": 0.5})
    rounds = [fedavg.local_training(plain_end, 30, 100, at, 10) for at in (7, 8)]
    assert [(one.augment, one.cutmix, one.augment_until) for one in rounds] == [("paper", 0.5, 1.0), ("none", 0.0, 1.0)]
    both = StudentSettings(training=TrainingSettings(epochs=2, batch=4), generations=2)
    twice = Recipe(student=both, transferal=())
    assert twice.images_seen(5, sites=3) == 2 * 12  # 10 images are three batches of four, twice
    followed = twice.model_copy(update={"follow_up": SiteTrainingSettings(image_budget=6)})
    assert followed.images_seen(5, sites=3) == 2 * 24 + 3 * 8  # two studies, and two batches at each site
    begun = twice.model_copy(update={"head_start": SiteTrainingSettings(image_budget=6)})
    assert begun.images_seen(5, sites=3) == 24  # what sites train in a teacher's place counts as little as a teacher


def test_fedavg_that_was_interrupted_goes_on_from_its_last_round_and_ends_alike(tmp_path: Path) -> None:
    network = NetworkSettings.model_validate(NETWORK)
    training = TrainingSettings.model_validate(SHORT)
    sites = {"one": a_set(4), "two": a_set(4, start=10)}

    class StoppedError(ConsiliumError):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        fedavg.federated(network, training, sites, rounds=2, seed=0, folder=tmp_path / "a", tell=stop)
    rounds: list[int] = []
    found = fedavg.federated(
        network, training, sites, rounds=2, seed=0, folder=tmp_path / "a", tell=lambda done, _: rounds.append(done)
    )
    whole = fedavg.federated(network, training, sites, rounds=2, seed=0, folder=tmp_path / "b")
    assert rounds == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), whole.parameters(), strict=True))


def test_what_fails_at_a_site_is_raised_with_its_own_words(tmp_path: Path) -> None:
    broken = replace(a_set(4), images=np.zeros((4, 1, 48, 48), np.float32))
    with pytest.raises(DataError, match="images are uint8"):
        fedavg.federated(
            NetworkSettings.model_validate(NETWORK),
            TrainingSettings.model_validate(SHORT),
            {"one": a_set(4), "two": broken},
            rounds=1,
            seed=0,
            folder=tmp_path,
        )
