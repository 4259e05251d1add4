"""Any process may be killed at any time: the study goes on, asks nobody twice, and ends with the same bytes."""

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_a_study_survives_its_superlink_its_serverapp_and_a_clientapp_being_killed(tmp_path: Path) -> None:
    """One after the other, each while the study is under way; `benchmarks/soak.py` says what is compared and kills the rest."""
    victims = ["SuperLink", "resident ClientApp", "ServerApp"]
    command = [
        sys.executable,
        str(SOAK),
        "--tiny",
        "--pause",
        "0.5",
        "1",
        "--work",
        str(tmp_path),
        "--victims",
        *victims,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert "1 starts of the command" in done.stdout, "the command itself never ended"
    assert "3 kills, the same bytes, and nothing that was answered asked again: met" in done.stdout
