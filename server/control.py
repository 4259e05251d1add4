"""What the coordinator asks of a SuperLink, over Flower's Control interface, with the secret of the home folder."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from consilium.common.errors import MachineError, SettingsError, StateError, StudyError
from consilium.common.processes import loopback_no_proxy
from consilium.server import superlink_home
from consilium.server.bundle import RunConfig, read_bundle
from consilium.server.guarded_superlink import HEADER

_POLL_S: Final = 0.2
_WATCH_S: Final = 1.0
_SILENCE_S: Final = 120.0


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Parameters
    ----------
    status
        ``pending``, ``starting``, ``running`` or ``finished``.
    sub_status
        ``completed``, ``failed`` or ``stopped`` once finished, else empty.
    details
        Flower's reason for a failure, else empty.
    """

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether the ServerApp returned without an error."""
        return self.finished and self.sub_status == "completed"


@dataclass(frozen=True)
class RegisteredNode:
    """A site's node as the SuperLink knows it.

    Parameters
    ----------
    node_id
        Flower's address of the node; stays the same for one registration.
    name
        As given to `Control.register`.
    public_key
        As `read_node_public_key` gives it.
    online
        Whether its SuperNode is connected.
    """

    node_id: int
    name: str
    public_key: bytes
    online: bool


class Control:
    """The Control interface of the SuperLink that listens on a port of this machine.

    Parameters
    ----------
    home
        Of that SuperLink: holds the secret.
    port
        That it listens on.
    authority
        Certificate of who certified it, PEM.
    """

    def __init__(self, home: Path, port: int, authority: Path) -> None:
        self._port: Final = port
        self._authority: Final = authority
        secret = _Secret(superlink_home.control_secret(home).read_text().strip())
        self._client: Final = self._open(secret)

    @property
    def address(self) -> str:
        """``host:port`` for processes on this machine."""
        return f"127.0.0.1:{self._port}"

    def register(self, public_key: bytes, name: str) -> int:
        """Register a site's node key; its SuperNode may connect from now on.

        Parameters
        ----------
        public_key
            As `read_node_public_key` gives it.
        name
            Unique name of the site; the ServerApp finds it in ``NodeInfo.name``.

        Returns
        -------
        int
            The node id; if the same key is registered under the same name already, its present one.

        Raises
        ------
        StateError
            If the key is registered under another name, or the name with another key.
        """
        for node in self.nodes():
            if (node.name, node.public_key) == (name, public_key):
                return node.node_id
            if node.name == name or node.public_key == public_key:
                raise StateError(
                    f"one name has one key; {name!r} with its key clashes with the registered {node.name!r}: unregister that "
                    "one first"
                )
        with self._asking("register a node"):
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Take a node's key off the list; its SuperNode is refused from now on."""
        with self._asking("unregister a node"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> tuple[RegisteredNode, ...]:
        """Return every registered node, in order of registration."""
        with self._asking("list the nodes"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return tuple(
            RegisteredNode(node.node_id, node.name, node.public_key, node.status == "online")
            for node in sorted(found, key=lambda node: node.registered_at)
            if node.status != "unregistered"
        )

    def wait_for_nodes(self, names: set[str], timeout_s: float) -> None:
        """Wait until the nodes of these names are online.

        Raises
        ------
        StudyError
            If some are not within ``timeout_s`` seconds; they are named.
        """
        deadline = time.monotonic() + timeout_s
        while missing := names - {node.name for node in self.nodes() if node.online}:
            if time.monotonic() > deadline:
                raise StudyError(f"sites not connected within {timeout_s:g} s: {', '.join(sorted(missing))}")
            time.sleep(_POLL_S)

    def submit(self, bundle_folder: Path, run_config: RunConfig, *, virtual_sites: int = 0) -> int:
        """Submit a run.

        Parameters
        ----------
        bundle_folder
            As `write_bundle` made it.
        run_config
            Overrides; every key must be among the bundle's defaults.
        virtual_sites
            How many sites Flower's simulation engine plays, if this SuperLink serves it.

        Returns
        -------
        int
            The run's id.

        Raises
        ------
        SettingsError
            If the bundle can not be built or the SuperLink refuses the run.
        """
        fab = read_bundle(bundle_folder)
        simulation = SimulationConfig(
            num_supernodes=virtual_sites,
            client_resources_num_cpus=1,
            client_resources_num_gpus=0.0,
            init_args_num_cpus=os.cpu_count() or 1,
            backend="ray",
        )
        request = StartRunRequest(
            fab=fab_to_proto(fab),
            override_config=user_config_to_proto(dict(run_config)),
            override_federation_config=simulation if virtual_sites else None,
        )
        with self._asking("submit a run"):
            response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise SettingsError("the SuperLink refused the run; its log says why")
        return int(response.run_id)

    def status(self, run_id: int) -> RunStatus:
        """Return where a run is.

        Raises
        ------
        StateError
            If there is no such run.
        """
        with self._asking(f"read the status of run {run_id}"):
            status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def wait(
        self,
        run_id: int,
        timeout_s: float | None = None,
        *,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> RunStatus:
        """Wait until a run has finished.

        Parameters
        ----------
        run_id
            As `submit` returned it.
        timeout_s
            Give up waiting after this many seconds (the run goes on); None waits for ever.
        meanwhile
            Called about every second, such as `SuperLink.revive`.

        Returns
        -------
        RunStatus
            The last one seen; look at `RunStatus.finished`.

        Raises
        ------
        MachineError
            If it does not answer for two minutes; the run may go on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = RunStatus("pending", "", "")
        heard = time.monotonic()
        while not last.finished and (deadline is None or time.monotonic() < deadline):
            meanwhile()
            try:
                last = self.status(run_id)
            except MachineError:  # it may just have been killed, and is started again here or where it was started
                if time.monotonic() - heard > _SILENCE_S:
                    raise
            else:
                heard = time.monotonic()
            if not last.finished:
                time.sleep(_WATCH_S)
        return last

    def run_log(self, run_id: int) -> str:
        """Return what a finished run's ServerApp wrote; Flower keeps it in the SuperLink, not in a file."""
        with self._asking("read a run's log"):
            return "".join(part.log_output for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id)))

    def stop_run(self, run_id: int) -> None:
        """Stop a run that has not finished."""
        with self._asking("stop a run"):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def stop_unfinished(self) -> None:
        """Stop every run that has not finished: those of a coordinator that was killed."""
        with self._asking("list the runs"):
            runs = self._client.ListRuns(ListRunsRequest()).run_dict
        for number, run in runs.items():
            if run.status.status != "finished":
                with contextlib.suppress(SettingsError, StateError):  # it may have ended by itself just now
                    self.stop_run(number)

    def answers(self) -> bool:
        """Whether the SuperLink is up; `MachineError` if the one that answers is another home's."""
        try:
            self._client.ListRuns(ListRunsRequest(limit=1))
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                raise MachineError(f"another SuperLink answers on port {self._port}; choose another port") from error
            return False
        return True

    def require_guard(self) -> None:
        """Make sure that a request without the secret is refused."""
        client = self._open()
        try:
            client.ListRuns(ListRunsRequest(limit=1))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.FORBIDDEN:
                return
            raise MachineError(f"the SuperLink's guard could not be checked: {error}") from error
        finally:
            client.close()
        raise MachineError(
            "the SuperLink's Control interface is open to everyone; this Flower release is not supported"
        )

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Tell a failed request in this package's words."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            kind = StateError if error.response.status_code == httpx.codes.NOT_FOUND else SettingsError
            raise kind(f"could not {what}; the SuperLink says: {_reason(error)}") from error
        except httpx.TransportError as error:
            raise MachineError(f"could not {what}: no answer from {self.address}: {error}") from error

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _open(self, *secret: "_Secret") -> ControlHttpClient:
        os.environ["NO_PROXY"] = loopback_no_proxy(os.environ)  # the client reads it when it is made
        return ControlHttpClient.from_server_address(
            self.address,
            False,
            self._authority.read_bytes(),
            [RuntimeVersionHttpInterceptor("consilium"), *secret],
        )


class _Secret:
    """Adds the home folder's secret to every Control request."""

    def __init__(self, secret: str) -> None:
        self._secret: Final = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[HEADER] = self._secret
        return call_next(context)


def _reason(error: httpx.HTTPStatusError) -> str:
    """Return the SuperLink's own words."""
    try:
        return str(error.response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.response.status_code}: {error.response.text[:500]}"
