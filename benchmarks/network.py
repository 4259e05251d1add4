"""Cut cables of a federation whose machines have a network of their own, and measure when that is seen and made good.

A coordinator and four hospitals, each in a network namespace (Linux, iproute2, root), are set up by the commands of
docs/deploy.md. While masks are collected, one machine's cable after the other is taken out of the switch, for as long as it takes
until `consilium status` shows the site as away, and put back; the coordinator's own cable as well, which takes all sites away.
Then the study must go on by itself, and end with the pseudo masks that are worked out by hand.

    python benchmarks/network.py --cuts west north coordinator
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _measure import parser, print_machine, print_table, print_target

from consilium.common.processes import Child, ProcessGroup

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.federation_by_command import COORDINATOR, SIZE, Federation
from tests.network_of_machines import Network, why_not

SITES = ("north", "east", "south", "west")
REPORTED_S, BACK_S = 60.0, 90.0
"""Targets: a site that is away is shown as such, and answers again once it can."""
SHOWN_S = 10.0
"""Within which a site that answers again is shown as connected: the study looks every 2 s, and writes that down every 5."""
PATIENCE_S = 240.0
LOOK_EVERY_S = 0.2
AFTER_S = 120.0
"""Within which the study must end when all is well."""


def seconds_until(ready: Callable[[], bool], running: Child) -> float:
    """Wait until something is so while a command runs; gives the seconds."""
    began = time.monotonic()
    running.wait_until(ready, PATIENCE_S, every_s=LOOK_EVERY_S)
    return time.monotonic() - began


def cut_one(
    federation: Federation, machine: str, running: Child, shortest_s: float
) -> tuple[float | None, float, bool]:
    """Cut a cable until that is reported, put it back, wait until every site it cut off has answered more.

    With ``shortest_s`` it is put back after so many seconds, reported or not. Gives the seconds to the report, those from then
    on to the answers, and whether all is shown as connected again.
    """
    sites = federation.sites if machine == COORDINATOR else (machine,)
    federation.network.cut(machine)
    reported = None
    if shortest_s:
        time.sleep(shortest_s)
    else:
        reported = seconds_until(lambda: federation.glance().away(sites), running)
    before = federation.glance()
    federation.network.restore(machine)

    def answer_again() -> bool:
        now = federation.glance()
        return all(now.answered(site) > before.answered(site) for site in sites)

    back = seconds_until(answer_again, running)
    limit = time.monotonic() + SHOWN_S
    while (shown_away := any(federation.glance().away([site]) for site in sites)) and time.monotonic() < limit:
        time.sleep(LOOK_EVERY_S)  # an answer may be faster than the next look at who is connected
    return reported, back, not shown_away


def main() -> int:
    """Set up, cut, compare."""
    options = parser(__doc__)
    options.add_argument("--cuts", nargs="+", choices=[*SITES, COORDINATOR], default=["west", "north", COORDINATOR])
    options.add_argument("--images", type=int, default=480)
    options.add_argument("--pause", type=float, default=0.2, help="seconds a teacher takes for an image")
    given = options.parse_args()
    if reason := why_not():
        raise SystemExit(f"not tried: {reason}")
    shortest_s = 0.0
    if given.tiny:
        given.cuts, given.images, given.pause, shortest_s = given.cuts[:1], 96, 0.05, 5.0
    print_machine()
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as temporary, Network([COORDINATOR, *SITES]) as network, ProcessGroup() as group:
        federation = Federation(network, group, Path(temporary))
        federation.join(given.pause)
        federation.start()
        federation.build_catalogue(given.images)
        federation.write_study({"deadline-s": 3600.0, "connect-s": 600.0})
        shown = federation.ended(COORDINATOR, *federation.run_command())
        if shown.returncode != 3:
            raise SystemExit(f"the study does not wait for consent: {shown.stdout}{shown.stderr}")
        federation.consent()
        running = federation.started(COORDINATOR, *federation.run_command())
        seconds_until(lambda: federation.glance().collected > 0, running)
        for machine in given.cuts:
            reported, back, shown_again = cut_one(federation, machine, running, shortest_s)
            rows.append((machine, "" if reported is None else f"{reported:.1f}", f"{back:.1f}", shown_again))
        status = running.wait(AFTER_S + given.images * given.pause)
        same = (federation.run / "pseudo_masks.u8").read_bytes() == federation.expected_pseudo_masks().tobytes()
        if status:
            print(running.tail(40))
        federation.stop()
    print_table(("cable cut", "shown as away after, s", "answers again after, s", "shown as back"), rows)
    told, back_again = [float(str(row[1]) or 0) for row in rows], [float(str(row[2])) for row in rows]
    met = (
        (f"{given.images} images of {SIZE} x {SIZE}, the pseudo masks worked out by hand", status == 0 and same),
        (f"a site that is away is shown as such within {REPORTED_S:g} s", max(told) <= REPORTED_S),
        (f"it answers again within {BACK_S:g} s", max(back_again) <= BACK_S and all(row[3] for row in rows)),
    )
    for rule, kept in met:
        print_target(rule, kept)
    return 0 if all(kept for _, kept in met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
