"""A coordinator and four hospitals, each with a network of its own, by the commands alone; one cable is pulled on the way."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilium.common.identity.certificates import make_authority
from consilium.common.processes import ProcessGroup
from tests.federation_by_command import COORDINATOR, PORT, Federation
from tests.network_of_machines import Network, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

SITES = ("north", "east", "south", "west")
IMAGES = 48
CUT_S = 6.0
GOES_ON_S = 90.0
LOOPBACK = ("127.0.0.1", "::1")
TRY_TLS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from consilium.common.checks import secure_connection
for address, authority in zip(sys.argv[1::2], sys.argv[2::2]):
    [first, *_] = secure_connection(address, Path(authority).read_bytes(), lambda: datetime.now(UTC))
    print(first.status, first.said)
"""
TRY_PORTS = """
import socket, sys
for port in sys.argv[2:]:
    with socket.socket() as attempt:
        attempt.settimeout(5)
        print(attempt.connect_ex((sys.argv[1], int(port))))
"""
REFUSED = 111


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Federation]:
    with Network([COORDINATOR, *SITES]) as network, ProcessGroup() as children:
        federation = Federation(network, children, tmp_path)
        yield federation
        federation.stop()


def test_four_hospitals_on_networks_of_their_own_bear_a_cut_cable(hospitals: Federation, tmp_path: Path) -> None:
    hospitals.join(pause_s=0.05)
    hospitals.start()
    only_the_coordinator_can_be_reached(hospitals)
    only_the_true_coordinator_is_believed(hospitals, tmp_path)

    hospitals.build_catalogue(IMAGES)
    hospitals.write_study({"deadline-s": 200.0, "connect-s": 150.0})
    shown = hospitals.ended(COORDINATOR, *hospitals.run_command())
    assert (shown.returncode, "waits for consent" in shown.stderr) == (3, True), shown.stderr
    hospitals.consent()
    running = hospitals.started(COORDINATOR, *hospitals.run_command())
    running.wait_until(lambda: hospitals.glance().collected > 0, GOES_ON_S)
    hospitals.network.cut("west")
    time.sleep(CUT_S)
    held_up = hospitals.glance()
    assert held_up.collected < IMAGES, "the study waits for its fourth site"
    hospitals.network.restore("west")
    running.wait_until(lambda: hospitals.glance().answered("west") > held_up.answered("west"), GOES_ON_S)
    assert running.wait(GOES_ON_S) == 0, running.tail()

    told = json.loads(hospitals.done(COORDINATOR, "consilium", "status", hospitals.run, "--json"))
    assert told["status"] == "finished"
    assert {site: held["images"]["answered"] for site, held in told["sites"].items()} == dict.fromkeys(SITES, IMAGES)
    assert (hospitals.run / "pseudo_masks.u8").read_bytes() == hospitals.expected_pseudo_masks().tobytes()


def only_the_coordinator_can_be_reached(hospitals: Federation) -> None:
    network = hospitals.network
    assert PORT in {port for address, port in network.listening(COORDINATOR) if address not in LOOPBACK}
    for site in hospitals.sites:
        listening = network.listening(site)
        assert {address for address, _ in listening} <= set(LOOPBACK), f"{site} listens to the outside"
        ports = {str(port) for _, port in listening}
        tried = hospitals.done(COORDINATOR, sys.executable, "-c", TRY_PORTS, network.address(site), *sorted(ports))
        assert {int(code) for code in tried.split()} == {REFUSED}


def only_the_true_coordinator_is_believed(hospitals: Federation, tmp_path: Path) -> None:
    ours = hospitals.folder / "north" / "authority.pem"
    strangers = make_authority(tmp_path / "strangers", "strangers").certificate
    by_address = f"{hospitals.network.address(COORDINATOR)}:{PORT}"
    tries = (hospitals.address, ours, hospitals.address, strangers, by_address, ours)
    right, stranger, unnamed = hospitals.done("north", sys.executable, "-c", TRY_TLS, *tries).splitlines()
    assert right.startswith("ok")
    assert stranger.startswith("wrong")
    assert "unable to get local issuer certificate" in stranger or "self-signed" in stranger
    assert unnamed.startswith("wrong")
    assert "mismatch" in unnamed
