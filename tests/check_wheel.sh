#!/bin/sh
# Install a built wheel outside the source tree, and run a whole small federation from it.
#   sh tests/check_wheel.sh build/wheel/consilium-*.whl
set -eu
wheel=$(realpath "$1")
settings=$(realpath "$(dirname "$0")/tiny.toml")
python=$(realpath -s .venv/bin/python)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m pip install --quiet --no-deps --target "$place/site" "$wheel"
cd "$place"
export PYTHONPATH="$place/site"
"$python" -P - <<'CHECK'
import os
from importlib.resources import files

import consilium.clients, consilium.common, consilium.server  # noqa: E401

place = os.environ["PYTHONPATH"]
for room in (consilium.clients, consilium.common, consilium.server):
    assert room.__file__.startswith(place), f"{room.__file__} is not the installed wheel's"
shipped = {entry.name for entry in files("consilium.configs").iterdir()}
assert {"demo.toml", "breast-ultrasound.toml"} <= shipped, shipped
shipped_with = (("clients", "py.typed"), ("clients", "gateway.proto"), ("configs", "paper/numbers.csv"))
for room, name in (*shipped_with, ("server.report", "report.html.j2")):
    assert files(f"consilium.{room}").joinpath(name).is_file(), f"{name} is not in the wheel"
CHECK
"$python" -P -m consilium.server.cli simulate "$settings" --run "$place/run" --engine inline >"$place/log" 2>&1 || {
  cat "$place/log"
  exit 1
}
test -s "$place/run/report.html"
test -s "$place/run/student/student.safetensors"
echo "the wheel works outside the source tree"
