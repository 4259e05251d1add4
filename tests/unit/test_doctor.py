"""What the doctors find: a line each, ok or what to do."""

import json
import ssl
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.clients.doctor import examine as examine_site
from consilium.clients.doctor import judge
from consilium.clients.gateway import is_healthy, is_taken, serve
from consilium.clients.settings import load_site
from consilium.common import checks
from consilium.common.checks import Finding, clocks_agree, is_well, report, secure_connection
from consilium.common.identity.certificates import CertificateFacts, make_authority, make_server_certificate
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import save_student, student_card
from consilium.common.processes import free_port
from consilium.server.doctor import examine
from consilium.server.federation import Federation, utc_now
from consilium.server.provision import provision

NOW = utc_now()
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _the_time_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are valid from when they are made on, which may be long after this file was read."""
    monkeypatch.setitem(globals(), "NOW", utc_now() - timedelta(seconds=2))  # a certificate's times are whole seconds


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.status for finding in findings}


def test_lines_say_ok_or_what_to_do_and_json_says_the_same() -> None:
    findings = [Finding("disk", "ok", "much"), Finding("clock", "wrong", "late", "set it")]
    assert report(findings).splitlines() == [
        "ok     disk   much",
        "WRONG  clock  late",
        "              -> set it",
        "1 of 2 are wrong",
    ]
    told = json.loads(report(findings, as_json=True))
    assert told["well"] is False
    assert told["findings"][1] == {"what": "clock", "status": "wrong", "said": "late", "advice": "set it"}
    assert is_well([findings[0], Finding("x", "note", "")])


@pytest.mark.parametrize(
    ("ahead_s", "status"),
    [
        (0, "ok"), (0.99, "ok"), (-2, "ok"), (3.5, "note"), (-3, "note"), (5.9, "note"), (6, "wrong"), (-299, "note"),
        (-300, "wrong"),
    ],
)  # fmt: skip
def test_a_clock_is_wrong_where_flower_refuses_it(ahead_s: float, status: str) -> None:
    there = datetime(2026, 1, 1, tzinfo=UTC)
    assert clocks_agree(there, there + timedelta(seconds=ahead_s)).status == status


def test_a_certificate_is_good_then_noted_then_wrong() -> None:
    facts = CertificateFacts("hub", "authority", ("hub",), NOW, NOW + 100 * DAY, "SHA256:x")
    days = {0: "ok", 70: "ok", 71: "note", 99: "note", 100: "wrong", -1: "wrong"}
    assert {day: checks.certificate("c", facts, NOW + day * DAY, "renew").status for day in days} == days


@pytest.mark.parametrize(
    ("masks", "status", "said"),
    [
        ([0.0, 0.5, 1.0], "ok", "0.000 to 1.000, mean 0.500"),
        ([0.25, 0.25], "wrong", "says 0.25 of every pixel"),
        ([0.0, float("nan")], "wrong", "not finite"),
        ([0.0, float("inf")], "wrong", "not finite"),
        ([-3.0, 0.5], "wrong", "from -3 to 0.5"),
        ([0.0, 1.5], "wrong", "from 0 to 1.5"),
    ],
)
def test_a_teachers_masks_are_finite_between_0_and_1_and_not_constant(
    masks: list[float], status: str, said: str
) -> None:
    found = judge(np.array(masks, np.float32), "x")
    assert found.status == status
    assert said in found.said


class _Silent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, bytes]]:
    """An HTTPS server for 127.0.0.1; gives its port and its authority."""
    folder = tmp_path_factory.mktemp("server")
    tls = make_server_certificate(folder, make_authority(folder, "ours"), [], ["127.0.0.1"], 90)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with HTTPServer(("127.0.0.1", 0), _Silent) as running:
        running.handle_error = lambda *_: None
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_address[1], tls.authority.read_bytes()
        running.shutdown()
        thread.join()


def test_a_server_is_trusted_by_our_authority_and_by_no_other(server: tuple[int, bytes], tmp_path: Path) -> None:
    port, authority = server
    found = secure_connection(f"127.0.0.1:{port}", authority, utc_now)
    assert statuses(found) == {"TLS": "ok", "TLS, others": "ok", "certificate": "ok", "clock": "ok"}
    stranger = make_authority(tmp_path, "stranger").certificate.read_bytes()
    (fault,) = secure_connection(f"127.0.0.1:{port}", stranger, utc_now)
    assert fault.status == "wrong"
    assert "issued by ours" in fault.said
    (fault,) = secure_connection(f"localhost:{port}", authority, utc_now)
    assert "the certificate is for other names" in fault.advice


def test_a_server_whose_certificate_ran_out_or_whose_clock_is_another_is_found(server: tuple[int, bytes]) -> None:
    port, authority = server
    late = secure_connection(f"127.0.0.1:{port}", authority, lambda: utc_now() + 91 * DAY)
    assert statuses(late)["certificate"] == statuses(late)["clock"] == "wrong"
    soon = secure_connection(f"127.0.0.1:{port}", authority, lambda: utc_now() + 80 * DAY)
    assert statuses(soon)["certificate"] == "note"


def test_nothing_listening_and_no_such_name_are_told_apart(server: tuple[int, bytes]) -> None:
    assert checks.port_opens("127.0.0.1", server[0]).status == "ok"
    assert checks.port_is_free("127.0.0.1", server[0]).status == "wrong"
    port = free_port()
    assert checks.port_is_free("127.0.0.1", port).status == "ok"
    assert "firewall" in checks.port_opens("127.0.0.1", port).advice
    assert "spelling" in checks.name_resolves("no-such-host.invalid").advice


def test_a_key_that_others_can_read_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "key").touch(0o600)
    assert checks.private_file("key", tmp_path / "key").status == "ok"
    (tmp_path / "key").chmod(0o640)
    assert checks.private_file("key", tmp_path / "key").advice == f"chmod 600 {tmp_path / 'key'}"
    assert checks.private_file("key", tmp_path / "absent").status == "wrong"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    (tmp_path / "f.toml").write_text(
        f'name = "x"\n[superlink]\naddress = "localhost:{free_port()}"\nhost = "127.0.0.1"\n[sites.north]\n'
    )
    return provision(tmp_path / "f.toml", tmp_path / "fed", NOW)


def test_the_coordinators_doctor_is_content_with_a_new_federation(federation: Federation) -> None:
    found = examine(federation.folder)
    assert is_well(found), report(found)
    assert statuses(found)["site north"] == statuses(found)["coordinator"] == "note"


def test_the_coordinators_doctor_finds_what_ran_out_and_what_was_exchanged(federation: Federation) -> None:
    late = statuses(examine(federation.folder, lambda: NOW + 366 * DAY))
    assert late["certificate"] == late["site north"] == "wrong"
    assert late["authority"] == "ok"
    (federation.folder / "signing.pub").write_text("0" * 64)
    federation.signing_key.chmod(0o644)
    settings = federation.folder / "federation.toml"
    settings.write_text(settings.read_text().replace("localhost:", "hub.invalid:"))
    found = statuses(examine(federation.folder))
    wrong = {what for what, status in found.items() if status == "wrong"}
    assert wrong == {"signing key", "signing key pair", "certificate's names", "DNS"}


def test_the_coordinators_doctor_finds_a_key_that_is_not_the_certificates(federation: Federation) -> None:
    assert statuses(examine(federation.folder))["certificate's key pair"] == "ok"
    former = federation.certificates.key.read_bytes()
    federation.renew_server(NOW)
    federation.certificates.key.write_bytes(former)
    (fault,) = [found for found in examine(federation.folder) if found.status == "wrong"]
    assert (fault.what, fault.advice) == (
        "certificate's key pair",
        f"consilium federation renew {federation.folder}",
    )


def test_the_coordinators_doctor_without_a_folder_looks_at_the_machine(tmp_path: Path) -> None:
    assert set(statuses(examine(None))) == {"versions", "disk", "GPU"}
    assert statuses(examine(tmp_path))["folder"] == "wrong"


@pytest.fixture
def home() -> Iterator[Path]:
    """A site with a teacher of random weights."""
    with tempfile.TemporaryDirectory(prefix="consilium-") as folder:  # a Unix socket's path is short
        path = Path(folder) / "site.toml"
        path.write_text(
            'name = "north"\n[teacher]\nnetwork = { name = "unet", width = 4 }\nsize = 32\n'
            '[training]\ndevice = "cpu"\nepochs = 1\n'
            f'[policy]\ntrusted-signers = ["{"0" * 64}"]\n'
        )
        settings = NetworkSettings(name="unet", width=4)
        network = build(settings, 1, 1, 0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.1, torch.Generator().manual_seed(0))
        save_student(path.parent / "teacher", network, student_card(settings, 1, 1, 32))
        yield path


class _Nobody:
    """A site that is never asked."""

    def describe(self, *_: object) -> None:
        raise NotImplementedError

    predict = evaluate = fine_tune = describe


def test_a_sites_doctor_tries_its_teacher_and_its_gateway(home: Path) -> None:
    found = examine_site(load_site(home))
    assert is_well(found), report(found)
    assert statuses(found) == {
        "versions": "ok", "disk": "ok", "GPU": "ok", "policy": "ok", "trusted signers": "ok", "consent": "ok",
        "connection": "note", "gateway": "note", "teacher": "ok",
    }  # fmt: skip
    with serve(_Nobody(), load_site(home).gateway_address):
        assert statuses(examine_site(load_site(home)))["gateway"] == "ok"


def test_a_sites_doctor_says_which_policy_holds(home: Path) -> None:
    def said() -> tuple[str, str]:
        (found,) = [found for found in examine_site(load_site(home)) if found.what == "policy"]
        return found.status, found.said

    assert said() == (
        "ok", "[policy] of site.toml: predict, evaluate, fine-tune may be asked for; at most 1,000,000 masks of 256 levels"
    )  # fmt: skip
    home.write_text(home.read_text().partition("[policy]")[0])
    assert said()[0] == "note"
    assert "the defaults hold" in said()[1]
    (home.parent / "policy.toml").write_text('actions = ["predict"]\nmask-budget = 70\n')
    assert said() == ("ok", "policy.toml: predict may be asked for; at most 70 masks of 256 levels")


def test_a_sites_doctor_finds_a_teacher_that_is_missing_or_has_other_labels(home: Path) -> None:
    home.write_text('labels = ["mass", "cyst"]\n' + home.read_text())
    (fault,) = [found for found in examine_site(load_site(home)) if found.what == "teacher"]
    assert "shape (1, 1, 384, 384)" in fault.said
    (home.parent / "teacher" / "card.json").unlink()
    (fault,) = [found for found in examine_site(load_site(home)) if found.what == "teacher"]
    assert "consilium-site train" in fault.advice


def test_a_sites_doctor_finds_a_teacher_that_was_never_trained(home: Path) -> None:
    settings = NetworkSettings(name="unet", width=4)
    save_student(home.parent / "teacher", build(settings, 1, 1, 0), student_card(settings, 1, 1, 32))
    (fault,) = [found for found in examine_site(load_site(home)) if found.what == "teacher"]
    assert (fault.status, "of every pixel" in fault.said) == ("wrong", True)


def test_a_sites_doctor_finds_a_connection_that_lacks_its_files(home: Path) -> None:
    home.write_text(
        home.read_text() + '[connection]\nsuperlink = "hub.invalid:1"\nca = "authority.pem"\nnode-key = "node-key"\n'
    )
    found = statuses(examine_site(load_site(home)))
    assert (found["node key"], found["authority"]) == ("wrong", "wrong")
    make_authority(home.parent, "a")
    found = statuses(examine_site(load_site(home)))
    assert (found["authority"], found["DNS"]) == ("ok", "wrong")
    assert "TLS" not in found


def test_a_gateway_that_holds_its_socket_and_does_not_answer_is_told_from_none(home: Path) -> None:
    address = f"unix:{home.parent}/s"
    assert not is_taken(address)
    with serve(_Nobody(), address):
        assert is_taken(address)
        assert is_healthy(address)
    assert not is_healthy(address, 0.5)
    assert not is_taken(address)
