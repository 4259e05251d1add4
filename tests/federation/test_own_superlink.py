"""Studies submitted to a SuperLink of one's own, by `consilium run` and by `flwr run .`: TLS, node keys, Flower's own guard."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from consilium.common.identity.certificates import make_authority, make_server_certificate
from consilium.common.identity.node_keys import make_node_key
from consilium.common.processes import Child, ProcessGroup, flower_environment, free_port
from consilium.common.settings import read_toml
from consilium.common.study import to_run_config
from consilium.server.run_folder import RunFolder
from consilium.server.simulation import site_home
from tests.one_site import BIN, ROOT, differing, one_site, simulate_quietly


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, run in one process: the site's home with its trained teacher, and what must come out."""
    return simulate_quietly(one_site(), tmp_path_factory.mktemp("inline") / "run")


@pytest.fixture(scope="module")
def flower(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SuperLink as Flower's manual starts one, with a connection named `hospital` and one site; gives the environment."""
    home = tmp_path_factory.mktemp("own")
    port = free_port()
    tls = make_server_certificate(home / "tls", make_authority(home / "tls", "own"), ["localhost"], ["127.0.0.1"], 2)
    environment = flower_environment(home / "flwr")
    (home / "flwr").mkdir()
    connection = {"address": f"127.0.0.1:{port}", "root-certificates": str(tls.authority)}
    (home / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"hospital": connection}}))
    command = [
        *(
            str(BIN / "flower-superlink"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--database",
            str(home / "state.db"),
        ),
        *("--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate)),
        *("--ssl-keyfile", str(tls.key), "--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]
    site = site_home(RunFolder(finished), "north")
    make_node_key(site / "node-key")
    document = read_toml(site / "site.toml")
    document["connection"] = {
        "superlink": f"127.0.0.1:{port}",
        "ca": str(tls.authority),
        "node-key": str(site / "node-key"),
    }
    (site / "site.toml").write_text(tomli_w.dumps(document))
    with ProcessGroup() as group:
        link = group.add(Child("own SuperLink", command, home / "superlink.log", environment=environment))
        register = ["supernode", "register", str(site / "node-key.pub"), "hospital", "--name", "north"]
        link.wait_until(lambda: flwr(environment, *register).returncode == 0, 60, every_s=1.0)
        group.add(Child("site", [str(BIN / "consilium-site"), "start", str(site / "site.toml")], home / "site.log"))
        yield environment


def flwr(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "flwr"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def run_folder(finished: Path, folder: Path) -> Path:
    """A run folder that holds the catalogue and the study's key alone."""
    shutil.copytree(finished / "catalogue", folder / "catalogue")
    for name in ("sealing.pem", "sealing.json"):
        shutil.copy(finished / name, folder / name)
    return folder


def settings_file(path: Path, extra: dict[str, object]) -> Path:
    flat = to_run_config(one_site().study) | extra
    path.write_text(tomli_w.dumps(flat))
    return path


def test_consilium_run_submits_a_study_and_follows_it_to_its_report(
    finished: Path, flower: dict[str, str], tmp_path: Path
) -> None:
    folder = run_folder(finished, tmp_path / "run")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(one_site().study.model_dump(mode="json", by_alias=True)))
    command = [
        str(BIN / "consilium"),
        "run",
        str(tmp_path / "study.toml"),
        "--run",
        str(folder),
        "--superlink",
        "hospital",
    ]
    ended = subprocess.run(
        command, env=flower | {"COLUMNS": "150"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert differing(folder, finished) == []
    assert "sites evaluate the student: done" in ended.stdout
    assert json.loads((folder / "metrics.json").read_text())["sites"]["north"]["images"]["answered"] > 0


def test_flwr_run_takes_the_same_settings_as_run_config(finished: Path, flower: dict[str, str], tmp_path: Path) -> None:
    folder = run_folder(finished, tmp_path / "run")
    settings = settings_file(tmp_path / "run-config.toml", {"run-folder": str(folder)})
    ended = flwr(flower, "run", str(ROOT), "hospital", "--run-config", str(settings), "--stream")
    assert "error" not in ended.stderr.lower(), ended.stdout + ended.stderr
    assert differing(folder, finished) == []
    assert (folder / "report.html").is_file()
