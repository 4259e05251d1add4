"""The resident ClientApp, where Flower's own parts leave it waiting."""

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

from consilium.clients import resident

NEXT = "of the next one"


def missing(object_id: str) -> bytes:
    raise ObjectUnavailableError(object_id)


def test_a_message_whose_parts_will_not_come_is_dropped_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_LOOK_EVERY_S", 0.0)
    offered = ["", "", NEXT]
    pull = resident._Supersession(lambda: offered.pop(0)).around(missing)
    with pytest.raises(resident._Superseded) as superseded:
        pull_objects(["a part"], pull, initial_backoff=0.01)
    assert superseded.value.token == NEXT
    assert not offered


def test_a_part_that_is_late_is_waited_for_while_nothing_else_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_LOOK_EVERY_S", 0.0)
    late = [missing, missing, lambda object_id: object_id.encode()]
    pull = resident._Supersession(lambda: "").around(lambda object_id: late.pop(0)(object_id))
    assert pull_objects(["a part"], pull, initial_backoff=0.01) == {"a part": b"a part"}
