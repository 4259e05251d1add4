"""FedAvg of one network, through Flower's own strategy and messages, as the baseline that shares weights.

Every site trains the same network on its own labels from where the others' mean left it; the strategy averages the results,
weighted by the sites' numbers of images (McMahan et al. 2017). In all, over rounds and sites, as many images are seen as the
student sees, each site's as often as another's. Within a round the learning rate stands still; from round to round it follows
the student's schedule.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from consilium.common.errors import ConsiliumError, StateError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.weights import dump_weights, load_weights
from consilium.common.training.loop import fit
from consilium.common.training.settings import TrainingSettings
from consilium.server.experiment.data import DataSet
from consilium.server.inline import in_memory_grid

CHECKPOINT: Final = "round-{:04d}.safetensors"
_FIRST: Final = "first-round"

Tell = Callable[[int, int], None]
"""Told how many rounds are done, of how many."""


def nobody(_done: int, _total: int) -> None:
    """Tell nobody."""


def local_training(training: TrainingSettings, images: int, total: int, at: int, rounds: int) -> TrainingSettings:
    """Give a site's training in one round.

    Parameters
    ----------
    training
        The student's; its length is what all sites and rounds have together.
    images, total
        The site's images, and all sites'.
    at, rounds
        Which round, from 0, of how many.
    """
    seen = training.steps(total) * training.batch
    plain: dict[str, Any] = {} if training.augments(at, rounds) else {"augment": "none", "cutmix": 0.0}
    return training.model_copy(
        update=plain
        | {
            "augment_until": 1.0,  # its end is that of all rounds together
            "epochs": 0,
            "image_budget": max(1, round(seen * images / total / rounds)),
            "learning_rate": training.rate(at, rounds),
            "schedule": "constant",
            "warm_up": 0.0,
            "ema": 0.0,  # an average over sites is one already
        }
    )


def federated(
    network: NetworkSettings,
    training: TrainingSettings,
    sites: Mapping[str, DataSet],
    *,
    rounds: int,
    seed: int,
    folder: Path,
    tell: Tell = nobody,
) -> nn.Module:
    """Train one network by FedAvg.

    Parameters
    ----------
    network, training
        The student's.
    sites
        Labelled images of each.
    rounds
        At least 1.
    seed
        Decides initial weights, and order and augmentation of every site and round.
    folder
        Keeps the network after each round; a run that was interrupted goes on from the last.
    tell
        For a display.
    """
    module = build(network, *_channels(sites), seed)
    done = _last_round(folder, module)
    failures: list[ConsiliumError] = []

    def train(names: list[str], config: Mapping[str, object], node: int, arrays: ArrayRecord) -> RecordDict:
        name = names[node - 1]
        data, at = sites[name], int(str(config["server-round"])) - 1 + int(str(config[_FIRST]))
        local = build(network, *_channels(sites), seed)
        local.load_state_dict(arrays.to_torch_state_dict())
        total = sum(map(len, sites.values()))
        how = local_training(training, len(data), total, at, rounds)
        own = int(np.random.SeedSequence([seed, at, node]).generate_state(1)[0] >> 1)
        fit(local, data.images, data.truth * np.uint8(255), how, seed=own)
        return RecordDict({"arrays": _arrays(local), "metrics": MetricRecord({"num-examples": len(data)})})

    app = ClientApp()

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        arrays, config = message.content.array_records["arrays"], message.content.config_records["config"]
        try:
            return Message(train(list(sites), config, context.node_id, arrays), reply_to=message)
        except ConsiliumError as error:
            failures.append(error)  # in this process its words may be kept; the strategy sees a failed site
            raise

    def after_round(number: int, arrays: ArrayRecord) -> None:
        if failures:
            raise failures[0]
        if number:
            _put(module, arrays)
            _keep(folder, done + number, module)
        tell(done + number, rounds)

    if done < rounds:
        with _quiet(), in_memory_grid(app, {}, tuple(sites)) as grid:
            strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(sites), min_available_nodes=len(sites))
            strategy.start(
                grid,
                _arrays(module),
                num_rounds=rounds - done,
                train_config=ConfigRecord({_FIRST: done}),
                evaluate_fn=after_round,
            )
    return module.eval()


def _channels(sites: Mapping[str, DataSet]) -> tuple[int, int]:
    data = next(iter(sites.values()))
    return data.images.shape[1], data.truth.shape[1]


def _arrays(module: nn.Module) -> ArrayRecord:
    state: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return ArrayRecord(torch_state_dict=state)


def _put(module: nn.Module, arrays: ArrayRecord) -> None:
    """Take the strategy's mean; a mean of counters, which it makes a fraction, is cut."""
    module.load_state_dict(arrays.to_torch_state_dict())


def _keep(folder: Path, number: int, module: nn.Module) -> None:
    partial = folder / "round.partial"
    partial.write_bytes(dump_weights(module))
    partial.replace(folder / CHECKPOINT.format(number))
    (folder / CHECKPOINT.format(number - 1)).unlink(missing_ok=True)


def _last_round(folder: Path, module: nn.Module) -> int:
    """Take up the newest round that was kept; gives its number, 0 for none."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = sorted(folder.glob(CHECKPOINT.replace("{:04d}", "*")))
    if not kept:
        return 0
    try:
        load_weights(module, kept[-1].read_bytes())
    except ConsiliumError as error:
        raise StateError(f"{kept[-1]} is of another training or damaged ({error}); delete it") from None
    return int(kept[-1].stem.removeprefix("round-"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the strategy logs of every round: the display tells it. Failures are raised."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
