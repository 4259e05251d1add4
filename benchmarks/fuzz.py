"""Throw anything at whoever reads bytes from outside: planes, messages, kept answers, the gateway's protobuf, lists of images.

The inputs and what must hold are those of `tests/fuzzing.py`, which the tests try on a few examples; here on many. Hypothesis
draws them, and shrinks what it finds. It does not look at the code's branches, as a coverage-guided fuzzer would.

    python benchmarks/fuzz.py --examples 20000
"""

import sys
import time
from collections import Counter
from pathlib import Path

from _measure import parser, print_machine, print_table, print_target
from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzzing import TARGETS, Target


def attack(target: Target, examples: int, seed_: int) -> tuple[Counter[bool], str]:
    """Try a target; gives how many inputs were accepted and refused, and what went wrong."""
    counted: Counter[bool] = Counter()

    @seed(seed_)
    @settings(max_examples=examples, deadline=5000, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def try_it(given_input: object) -> None:
        counted[target.check(given_input)] += 1

    try:
        try_it()
    except Exception as error:
        return counted, f"{type(error).__name__}: {error} {' '.join(getattr(error, '__notes__', []))}"
    return counted, ""


def main() -> int:
    """Attack every target and print what was found."""
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=20_000, help="inputs for each target")
    options.add_argument("--seed", type=int, default=0)
    given_options = options.parse_args()
    examples = 50 if given_options.tiny else given_options.examples
    print_machine()
    rows, wrong = [], []
    for target in TARGETS:
        began = time.perf_counter()
        counted, fault = attack(target, examples, given_options.seed)
        rows.append((target.name, counted[True], counted[False], f"{time.perf_counter() - began:.0f}", fault or "none"))
        wrong += [f"{target.name}: {fault}"] if fault else []
    print_table(("what is read", "accepted", "refused", "seconds", "faults"), rows)
    print_target("no crash, no hang, no memory out of proportion, nothing wrong accepted", not wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
