import json
import os
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.common.config import parse_config_args

from consilium.clients.supernode import SuperNode, SuperNodeSettings, supernode_command
from consilium.common.errors import MachineError, SettingsError, StateError
from consilium.common.identity.node_keys import make_node_key, read_node_public_key
from consilium.server.bundle import write_bundle
from consilium.server.superlink import SuperLink

MARK = "CONSILIUM_TEST_FEDERATION"
SITES = ("north", "south")

SERVER_APP = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

def ask(grid, action, sites, data):
    nodes = {node.name: node for node in grid.get_nodes()}
    content = RecordDict({"c": ConfigRecord({"data": data})})
    messages = [Message(content, nodes[site].node_id, f"query.{action}", ttl=60) for site in sites]
    site_of = dict(zip(grid.push_messages(messages), sites, strict=True))
    replies = {}
    while len(replies) < len(sites):
        for reply in grid.pull_messages([i for i, site in site_of.items() if site not in replies]):
            replies[site_of[reply.metadata.reply_to_message_id]] = reply
        time.sleep(0.2)
    return replies, {site: nodes[site].public_key.decode() for site in sites}

@app.main()
def main(grid, context):
    config, out = context.run_config, Path(str(context.run_config["out"]))
    if config["mode"] == "fail":
        raise ValueError("told to fail")
    if config["mode"] == "slow":
        out.with_suffix(".begun").touch()
    echoes, keys = ask(grid, "echo", ["north", "south"], bytes(range(256)) * 4000)
    broken, _ = ask(grid, "break", ["north"], b"")
    out.write_text(json.dumps({
        "keys": keys,
        "same": [echoes[s].content["c"]["data"] == bytes(range(256)) * 4000 for s in keys],
        "said": {s: echoes[s].content["c"]["site"] for s in keys},
        "code": broken["north"].error.code,
        "reason": broken["north"].error.reason,
    }))
"""

CLIENT_APP = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("echo")
def echo(message, context):
    if context.run_config["mode"] == "slow":
        time.sleep(4)
    record = ConfigRecord({"data": message.content["c"]["data"], "site": context.node_config["site"]})
    return Message(RecordDict({"c": record}), reply_to=message)

@app.query("break")
def break_(message, context):
    raise ValueError("patient Jane Doe")
"""


class Federation:
    """A SuperLink, two sites and a bundle."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.link = stack.enter_context(SuperLink.start(folder / "link"))
        self.public_keys = {site: make_node_key(folder / site / "node_key") for site in SITES}
        self.node_ids = {
            site: self.link.control.register(read_node_public_key(key), site) for site, key in self.public_keys.items()
        }
        for site in SITES:
            settings = SuperNodeSettings(
                superlink_address=f"localhost:{self.link.port}",
                ca_certificate=self.link.certificates.authority,
                node_key=folder / site / "node_key",
                node_config={"site": site},
                home=folder / site,
                log_folder=folder / site / "log",
                client_app="consilium_test_client:app",
            )
            stack.enter_context(SuperNode(settings, name=site))
        self.link.control.wait_for_nodes(set(SITES), 60)
        self.bundle = write_bundle(
            folder / "bundle",
            {"mode": "echo", "out": ""},
            server_app="consilium_test_server:app",
            client_app="there_is:no_such_app",
        )

    def submit(self, mode: str) -> int:
        return self.link.control.submit(self.bundle, {"mode": mode, "out": str(self.folder / f"{mode}.json")})


def marked_processes(mark: str) -> list[str]:
    """Command lines of the living processes whose environment has the mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.environ().get(MARK) == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until_gone(mark: str, timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    (folder / "consilium_test_server.py").write_text(SERVER_APP)
    (folder / "consilium_test_client.py").write_text(CLIENT_APP)
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setenv(MARK, mark)
        with ExitStack() as stack:
            yield Federation(folder, stack)
    assert marked_processes(mark) == []


def test_bytes_come_back_unchanged_from_sites_known_by_name_and_key(federation: Federation) -> None:
    run = federation.submit("echo")
    status = federation.link.control.wait(run, 60)
    assert status.completed, federation.link.control.run_log(run)
    answer = json.loads((federation.folder / "echo.json").read_text())
    assert answer["same"] == [True, True]
    assert answer["said"] == {"north": "north", "south": "south"}
    assert answer["keys"] == {site: read_node_public_key(key).decode() for site, key in federation.public_keys.items()}
    # The bundle names a ClientApp that does not exist: the sites ran their own.
    assert answer["code"] == 2
    assert answer["reason"] == "the site failed; its own log says why"
    assert "Jane Doe" in (federation.folder / "north" / "log" / "clientapp.log").read_text()


def test_a_bundle_that_ships_the_package_and_the_client_app_itself_runs_neither_at_a_site(
    federation: Federation, tmp_path: Path
) -> None:
    bundle = write_bundle(
        tmp_path / "bundle",
        {"mode": "echo", "out": ""},
        server_app="consilium_test_server:app",
        client_app="consilium_test_client:app",
    )
    stolen = tmp_path / "stolen"
    leave_a_mark = f"from pathlib import Path\nPath({str(stolen)!r}).touch()\n"
    for name in ("consilium/__init__.py", "consilium/clients/__init__.py", "consilium/clients/app.py"):
        path = bundle / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(leave_a_mark)
    (bundle / "consilium_test_client.py").write_text(leave_a_mark + CLIENT_APP)
    out = tmp_path / "echo.json"
    run = federation.link.control.submit(bundle, {"mode": "echo", "out": str(out)})
    status = federation.link.control.wait(run, 60)
    assert status.completed, federation.link.control.run_log(run)
    assert json.loads(out.read_text())["said"] == {"north": "north", "south": "south"}
    assert not stolen.exists()


def test_a_server_app_that_raises_ends_as_failed_and_its_log_says_why(federation: Federation) -> None:
    run = federation.submit("fail")
    status = federation.link.control.wait(run, 60)
    assert (status.status, status.sub_status) == ("finished", "failed")
    assert not status.completed
    assert "told to fail" in status.details
    assert "ValueError" in federation.link.control.run_log(run)


def test_a_run_survives_its_superlink_being_killed(federation: Federation) -> None:
    run = federation.submit("slow")
    begun = federation.folder / "slow.begun"
    deadline = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.kill(federation.link.children[0].pid, signal.SIGKILL)
    status = federation.link.control.wait(run, 90, meanwhile=federation.link.revive)
    assert status.completed, federation.link.control.run_log(run)
    assert (federation.folder / "slow.json").exists()


def test_the_control_interface_answers_only_who_has_the_secret(federation: Federation) -> None:
    tls = ssl.create_default_context(cafile=str(federation.link.certificates.authority))
    with httpx.Client(verify=tls) as client:
        for path in ("/v1/control/list-runs", "/docs", "/openapi.json", "/v1/runtime/../control/list-runs"):
            for headers in ({}, {"x-consilium-control": "guess"}):
                answer = client.post(f"https://{federation.link.local_address}{path}", headers=headers, content=b"")
                assert answer.status_code == 403, path
        assert client.post(f"https://{federation.link.local_address}/v1/fleet/pull-messages").status_code in (401, 415)


def test_registering_again_gives_the_same_node_and_a_second_key_for_a_name_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    key, control = read_node_public_key(federation.public_keys["north"]), federation.link.control
    assert control.register(key, "north") == federation.node_ids["north"]
    with pytest.raises(StateError, match="one name has one key"):
        control.register(key, "west")
    with pytest.raises(StateError, match="one name has one key"):
        control.register(read_node_public_key(make_node_key(tmp_path / "other")), "north")


def test_an_unknown_run_config_key_is_refused_at_submission(federation: Federation) -> None:
    with pytest.raises(SettingsError):
        federation.link.control.submit(federation.bundle, {"no-such-key": 1})


def test_an_unknown_run_is_named(federation: Federation) -> None:
    with pytest.raises(StateError, match=r"status of run 7; .* Run ID not found"):
        federation.link.control.status(7)


def test_nothing_outlives_a_killed_coordinator_and_its_home_takes_up_where_it_was(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    key = make_node_key(tmp_path / "node_key")
    script = (
        "import time; from pathlib import Path; from consilium.common.identity.node_keys import read_node_public_key\n"
        "from consilium.server.superlink import SuperLink\n"
        f"link = SuperLink.start(Path({str(tmp_path / 'link')!r}))\n"
        f"link.control.register(read_node_public_key(Path({str(key)!r})), 'north')\n"
        "print(link.port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, MARK: mark}
    ) as coordinator:
        assert coordinator.stdout is not None
        port = int(coordinator.stdout.readline())
        assert len(marked_processes(mark)) >= 5
        coordinator.kill()
    assert wait_until_gone(mark, 15) == []
    with SuperLink.start(tmp_path / "link") as link:
        assert link.port == port
        assert [(node.name, node.public_key, node.online) for node in link.control.nodes()] == [
            ("north", read_node_public_key(key), False)
        ]


def test_a_superlink_that_can_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "superlink.sqlite").write_text("this is no database")
    with pytest.raises(MachineError, match="not a database"):
        SuperLink.start(tmp_path)


def test_node_config_values_reach_flower_as_they_are(tmp_path: Path) -> None:
    values = {"a": "two words", "b": "it's", "c": 'say "x"', "d": r"C:\new", "e": True, "f": 0.25, "g": -3, "h": ""}
    command = supernode_command("h:1", tmp_path, tmp_path, values, runtime_port=1, secret_file=tmp_path)
    assert parse_config_args([command[command.index("--node-config") + 1]]) == values
    with pytest.raises(SettingsError, match="two kinds of quotes"):
        supernode_command("h:1", tmp_path, tmp_path, {"a": "'\""}, runtime_port=1, secret_file=tmp_path)
