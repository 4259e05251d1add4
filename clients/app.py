"""The Flower ClientApp: a relay to the site's gateway.

It holds no data and imports no torch; what it may ask is decided by the gateway. At a site it is run by the resident process
(`clients/resident.py`), from the installed package. In Flower's simulation there is no gateway: the site is opened in this
process, from the run-config's ``sites-folder``, which holds ``NAME/site.toml`` for each of ``sites``; a virtual node plays the
site that a message's group names.
"""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from consilium.clients.gateway import GatewayClient
from consilium.clients.port import SitePort
from consilium.common.errors import ErrorCode, SettingsError, WireError
from consilium.common.settings import split_commas
from consilium.common.wire import (
    ACTIONS,
    DescribeRequest,
    Envelope,
    EvaluateRequest,
    FineTuneRequest,
    PredictRequest,
    error_record,
    from_record,
    to_record,
)

LOG: Final = logging.getLogger(__name__)

app = ClientApp()


def answer(port: SitePort, kind: type[Envelope], content: RecordDict) -> RecordDict:
    """Answer one request: its reply's form on Flower, or an error's; never an exception.

    Parameters
    ----------
    port
        Who answers.
    kind
        Of the request, a key of `wire.ACTIONS`.
    content
        As it came.
    """
    try:
        calls: dict[type[Envelope], Callable[[], Envelope]] = {
            DescribeRequest: lambda: port.describe(from_record(DescribeRequest, content)),
            PredictRequest: lambda: port.predict(from_record(PredictRequest, content)),
            EvaluateRequest: lambda: port.evaluate(from_record(EvaluateRequest, content)),
            FineTuneRequest: lambda: port.fine_tune(from_record(FineTuneRequest, content)),
        }
        return to_record(calls[kind]())
    except WireError as error:
        LOG.warning("refused: %s", error)
        return error_record(error.code)
    except Exception:
        LOG.exception("the relay failed")
        return error_record(ErrorCode.SITE_FAILED)


def _relay(kind: type[Envelope]) -> Callable[[Message, Context], Message]:
    def relay(message: Message, context: Context) -> Message:
        try:
            port = _find(context, message.metadata.group_id)
        except Exception:
            LOG.exception("the site could not be opened")
            return Message(error_record(ErrorCode.GATEWAY_UNREACHABLE), reply_to=message)
        return Message(answer(port, kind, message.content), reply_to=message)

    return relay


def _find(context: Context, site: str) -> SitePort:
    if "gateway" in context.node_config:
        return _connect(str(context.node_config["gateway"]))
    if "sites-folder" not in context.run_config or "partition-id" not in context.node_config:
        raise SettingsError(
            "a node needs gateway in its node config, or a simulation sites-folder and sites in the run config"
        )
    names = list(split_commas(context.run_config["sites"]))  # type: ignore[call-overload]  # a list for a text
    name = site if site in names else names[int(context.node_config["partition-id"])]
    return _open(Path(str(context.run_config["sites-folder"])) / name / "site.toml")


@cache
def _connect(address: str) -> SitePort:
    return GatewayClient(address)


@cache
def _open(settings: Path) -> SitePort:
    from consilium.clients.settings import load_site
    from consilium.clients.site import open_site

    return open_site(load_site(settings))


def _action(kind: type[Envelope]) -> str:
    return ACTIONS[kind].partition(".")[2]


app.query(_action(DescribeRequest))(_relay(DescribeRequest))
app.query(_action(PredictRequest))(_relay(PredictRequest))
app.evaluate(_action(EvaluateRequest))(_relay(EvaluateRequest))
app.train(_action(FineTuneRequest))(_relay(FineTuneRequest))
