"""From nothing to a second study and out again, by the commands alone: provision, join, accept, start, run, adopt, revoke."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import tomli_w

from consilium.common.catalogue import SIGNATURE_DOMAIN
from consilium.common.identity.signing import load_signing_key, public_key_of, sign
from consilium.common.processes import Child, ProcessGroup, free_port
from consilium.common.settings import read_toml
from consilium.server.run_folder import RunFolder
from consilium.server.simulation import SimulatedStudy, site_home
from tests.one_site import BIN, TINY, differing, one_site, simulate_quietly

STUDENT: Final = {
    "onnx": False,
    "network": {"name": "unet", "width": 8},
    "training": {"image-budget": 800, "batch": 8, "learning-rate": 3e-3, "threads": 1},
}
"""One that finds lesions: a site does not take another for its teacher."""


def study() -> SimulatedStudy:
    """One site, that fine-tunes the student."""
    return one_site(student=STUDENT, **{"fine-tune": read_toml(TINY)["fine-tune"] | {"sites": ["north"]}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, run in one process: a trained teacher, a catalogue, and what must come out."""
    return simulate_quietly(study(), tmp_path_factory.mktemp("inline") / "run")


@pytest.fixture
def running() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / name), *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


def done(name: str, *arguments: str | Path) -> str:
    ended = command(name, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def findings(status: str, name: str, *arguments: str | Path) -> dict[str, str]:
    told = json.loads(command(name, *arguments, "--json").stdout)
    return {found["what"]: found["said"] for found in told["findings"] if found["status"] == status}


def faults(name: str, *arguments: str | Path) -> dict[str, str]:
    return findings("wrong", name, *arguments)


def notes(name: str, *arguments: str | Path) -> dict[str, str]:
    return findings("note", name, *arguments)


def move_in(finished: Path, home: Path) -> None:
    """Give a site that has joined the teacher and the images of the simulated one."""
    source = site_home(RunFolder(finished), "north")
    for name in ("teacher", "data"):
        shutil.copytree(source / name, home / name)
    trained, joined = read_toml(source / "site.toml"), read_toml(home / "site.toml")
    own = {key: trained[key] for key in ("teacher", "training", "data")}
    (home / "site.toml").write_text(tomli_w.dumps(joined | own))
    policy = read_toml(home / "policy.toml") | {"min-images": 1}  # it tests on six
    (home / "policy.toml").write_text(tomli_w.dumps(policy))


def run_folder(finished: Path, folder: Path, key: Path) -> Path:
    """A run folder with the catalogue alone, signed by this federation."""
    shutil.copytree(finished / "catalogue", folder / "catalogue")
    signing = load_signing_key(key)
    data = (folder / "catalogue" / "manifest.json").read_bytes()
    (folder / "catalogue" / "signature.bin").write_bytes(sign(signing, SIGNATURE_DOMAIN, data))
    (folder / "catalogue" / "signer.pub").write_bytes(public_key_of(signing))
    return folder


def test_a_hospital_joins_takes_part_in_a_study_and_is_revoked(
    finished: Path, running: ProcessGroup, tmp_path: Path
) -> None:
    federation, home = tmp_path / "federation", tmp_path / "north"
    address = f"127.0.0.1:{free_port()}"
    settings = {"name": "trial", "superlink": {"address": address, "host": "127.0.0.1"}, "sites": {"north": {}}}
    (tmp_path / "federation.toml").write_text(tomli_w.dumps(settings))

    done("consilium", "provision", tmp_path / "federation.toml", "--out", federation)
    there = done("consilium-site", "join", federation / "kits" / "north.tar.gz", "--folder", home)
    here = done("consilium", "federation", "accept", federation, home / "north.join")
    fingerprint = next(line for line in here.splitlines() if "SHA256:" in line)
    assert fingerprint in there

    coordinator = running.add(
        Child("coordinator", [str(BIN / "consilium"), "coordinator", "start", str(federation)], tmp_path / "c.log")
    )
    coordinator.wait_until(lambda: "1 of 1 sites have joined" in coordinator.tail(), 60)
    done("consilium", "federation", "renew", federation)
    coordinator.wait_until(lambda: "the new certificate is in use" in coordinator.tail(), 60)
    move_in(finished, home)
    site = running.add(
        Child("site", [str(BIN / "consilium-site"), "start", str(home / "site.toml")], tmp_path / "s.log")
    )
    coordinator.wait_until(lambda: "north is connected (1 of 1)" in coordinator.tail(), 60)
    assert not faults("consilium", "doctor", federation)
    assert not faults("consilium-site", "doctor", home / "site.toml")

    folder = run_folder(finished, tmp_path / "run", federation / "signing.pem")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study().study.model_dump(mode="json", by_alias=True)))
    done("consilium", "catalogue", "seal", folder, "--key", federation / "signing.pem")
    shown = command("consilium", "run", tmp_path / "study.toml", "--run", folder, "--coordinator", federation)
    assert (shown.returncode, "waits for consent: north" in shown.stderr) == (3, True)
    told = json.loads(done("consilium", "status", folder, "--json"))
    assert (told["status"], told["sites"]["north"]["describe"]) == ("awaits-consent", "not consented")
    assert "tiny" in notes("consilium-site", "doctor", home / "site.toml")["consent"]
    images = len(json.loads((folder / "catalogue" / "manifest.json").read_text())["images"])
    assert f"{images} of {images}" in done("consilium-site", "review", home / "site.toml")
    looked = done("consilium-site", "review", home / "site.toml", "tiny")
    assert f"{images} of {images} images are here" in looked
    done("consilium-site", "approve", home / "site.toml", "tiny")
    done("consilium", "run", tmp_path / "study.toml", "--run", folder, "--coordinator", federation)
    assert differing(folder, finished) == []
    assert f" {images} " in done("consilium-site", "audit", home / "site.toml")

    second = tmp_path / "second"
    done("consilium", "follow-up", folder, "--run", second, "--name", "second", "--key", federation / "signing.pem")
    done("consilium-site", "adopt", home / "site.toml", "tiny")
    site.stop()
    site = running.add(
        Child("site", [str(BIN / "consilium-site"), "start", str(home / "site.toml")], tmp_path / "again.log")
    )
    site.wait_until(lambda: "is ready" in site.tail(), 60)
    again = ("run", second / "study.toml", "--run", second, "--coordinator", federation)
    assert command("consilium", *again).returncode == 3  # its consent was to another study
    done("consilium-site", "approve", home / "site.toml", "second")
    done("consilium", *again)
    metrics = json.loads((second / "metrics.json").read_text())
    assert (metrics["status"], metrics["sites"]["north"]["teacher"]["fine_tuned_student"]) == ("finished", True)

    done("consilium-site", "revoke", home / "site.toml", "tiny")
    assert "revoked" in done("consilium-site", "review", home / "site.toml")

    done("consilium", "federation", "revoke", federation, "north")
    coordinator.wait_until(lambda: "north is let in no more" in coordinator.tail(), 30)
    site.wait_until(lambda: "is refused by the SuperLink" in site.tail(), 90)
    assert "does not know this site's key" in faults("consilium-site", "doctor", home / "site.toml")["registration"]
    again = command("consilium", "run", tmp_path / "study.toml", "--run", folder, "--coordinator", federation)
    assert (again.returncode, "north (revoked" in again.stderr) == (2, True)
    assert coordinator.stop() == 0
