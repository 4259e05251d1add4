"""``consilium-site doctor``: is all well on a site's side."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import numpy as np
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from consilium.clients.consent import State
from consilium.clients.gateway import is_healthy, is_taken
from consilium.clients.review import listed
from consilium.clients.settings import ConnectionSettings, SiteHome
from consilium.common import checks
from consilium.common.checks import Finding, attempt
from consilium.common.errors import StateError
from consilium.common.identity.certificates import certificate_facts
from consilium.common.identity.node_keys import load_node_key, node_fingerprint, node_public_line
from consilium.common.identity.signing import fingerprint

if TYPE_CHECKING:
    import numpy.typing as npt

    from consilium.clients.teachers import Teacher

_TRIED_SIZE: Final = 384
_BAD_INTERVAL: Final = 2003
_UNKNOWN_KEY: Final = 2004
"""Flower's codes; see `_node_key_is_known`."""


def examine(home: SiteHome, image: Path | None = None) -> list[Finding]:
    """Look at this machine, the way to the coordinator, the gateway and the teacher.

    Parameters
    ----------
    home
        Of the site.
    image
        To try the teacher on; by default a built-in synthetic ultrasound image.
    """
    device = home.settings.training.device
    findings = [checks.versions(), checks.disk_space(home.folder), attempt("GPU", lambda: checks.gpu(device))]
    findings += [_policy(home), *_trust(home), attempt("consent", lambda: _consent(home))]
    if home.settings.connection is None:
        findings.append(Finding("connection", "note", "[connection] is not given: the gateway runs alone"))
    else:
        findings += _connection(home, home.settings.connection)
    findings.append(_gateway(home))
    advice = "train it with `consilium-site train SITE.toml`, or mend [teacher]"
    findings.append(attempt("teacher", lambda: _teacher(home, image), advice))
    return findings


def _policy(home: SiteHome) -> Finding:
    policy = home.settings.policy
    asked = ", ".join(policy.actions) or "nothing"
    may = f"{asked} may be asked for; at most {policy.mask_budget:,} masks of {policy.levels} levels"
    if home.policy_file.is_file():
        return Finding("policy", "ok", f"{home.policy_file.name}: {may}")
    if "policy" in home.settings.model_fields_set:
        return Finding("policy", "ok", f"[policy] of site.toml: {may}")
    return Finding(
        "policy", "note", f"there is none, so the defaults hold: {may}", "write one; docs/settings.md says how"
    )


def _consent(home: SiteHome) -> Finding:
    shown = listed(home)
    waiting = [one.shown.study.name for one in shown if one.state is State.WAITING]
    if waiting:
        advice = "look at it, and decide: consilium-site review SITE.toml STUDY, then approve or revoke"
        return Finding("consent", "note", f"waiting for a decision: {', '.join(waiting)}", advice)
    ended = [one.shown.study.name for one in shown if one.state in (State.EXPIRED, State.INVALID)]
    if ended:
        advice = "consilium-site approve SITE.toml STUDY, if it is to be answered again"
        return Finding("consent", "note", f"ran out, or its signature does not hold: {', '.join(ended)}", advice)
    return Finding("consent", "ok", f"{len(shown)} studies were shown, none waits for a decision")


def _trust(home: SiteHome) -> Iterator[Finding]:
    policy, what = home.settings.policy, "trusted signers"
    if policy.auto_approve:
        yield Finding(
            what, "wrong", "auto-approve: no person is asked; for simulations only", "take policy.auto-approve away"
        )
    elif not policy.trusted_signers:
        yield Finding(what, "wrong", "anyone may show a study", "name the coordinator's key in policy.trusted-signers")
    else:
        yield Finding(what, "ok", ", ".join(fingerprint(bytes.fromhex(key)) for key in policy.trusted_signers))


def _connection(home: SiteHome, connection: ConnectionSettings) -> Iterator[Finding]:
    key, ca = home.folder / connection.node_key, home.folder / connection.ca
    yield checks.private_file("node key", key)
    again = "ask the coordinator for a new kit"
    try:
        authority = ca.read_bytes()
        facts = certificate_facts(authority, str(ca))
    except (OSError, StateError) as error:
        yield Finding("authority", "wrong", " ".join(str(error).split()), again)
        return
    yield checks.certificate("authority", facts, _now(), again)
    host, port = checks.split_address(connection.superlink)
    way = [checks.name_resolves(host)]
    if checks.is_well(way):
        way.append(checks.port_opens(host, port))
    if checks.is_well(way):
        way += checks.secure_connection(connection.superlink, authority, _now)
    yield from way
    if checks.is_well(way):
        yield attempt("registration", lambda: _registration(connection.superlink, authority, key))


def _registration(address: str, authority: bytes, key: Path) -> Finding:
    what, shown = "registration", node_fingerprint(node_public_line(key))
    if _node_key_is_known(address, authority, key):
        return Finding(what, "ok", f"the coordinator knows this site's key, {shown}")
    return Finding(
        what,
        "wrong",
        f"the coordinator does not know this site's key, {shown}",
        "send it the .join file, or ask whether the key was accepted, ran out or was revoked",
    )


def _node_key_is_known(address: str, authority: bytes, key: Path) -> bool:
    """Ask the SuperLink to let this node in with a heartbeat that it can not accept, so that nothing changes.

    Flower 1.41 looks at the key first: a stranger is told that it can not be let in, a registered node that its heartbeat
    interval is wrong.
    """
    private = load_node_key(key)
    public = private.public_key()
    client = FleetHttpClient.from_server_address(
        address,
        False,
        authority,
        [RuntimeVersionHttpInterceptor("consilium"), NodeAuthHttpInterceptor(private, public)],
    )
    try:
        client.ActivateNode(ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=-1.0))
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        if told is not None and told.code in (_BAD_INTERVAL, _UNKNOWN_KEY):
            return told.code == _BAD_INTERVAL
        raise StateError(f"the SuperLink answers {error.response.status_code}: {error.response.text[:200]}") from None
    finally:
        client.close()
    raise StateError("this Flower release answers otherwise than 1.41 does; see its SuperNode's log")


def _gateway(home: SiteHome) -> Finding:
    address = home.gateway_address
    if is_healthy(address):
        return Finding("gateway", "ok", f"answers at {address}")
    if not is_taken(address):
        return Finding("gateway", "note", "does not run", "start it with `consilium-site start SITE.toml`")
    return Finding("gateway", "wrong", f"does not answer at {address}", "see the site's log, and start the site again")


def _teacher(home: SiteHome, image: Path | None) -> Finding:
    teacher = _opened(home)
    tried = _image(image)
    masks = teacher.predict(tried)
    shown = str(image) if image else "a built-in image"
    labels = home.settings.labels
    wanted = (1, len(labels), *tried.shape[2:])
    if masks.shape != wanted:
        return Finding(
            "teacher",
            "wrong",
            f"gives masks of shape {masks.shape} for {shown}, in place of {wanted}",
            f"labels are {', '.join(labels)}: the teacher gives a mask for each",
        )
    return judge(masks, shown)


def judge(masks: "npt.NDArray[np.floating]", shown: str) -> Finding:
    """Say whether masks, any shape, are soft masks that a working teacher could give: finite, in [0, 1], not constant."""
    what = "teacher"
    if not np.isfinite(masks).all():
        return Finding(
            what, "wrong", f"gives values that are not finite, on {shown}", "its weights are damaged: train it again"
        )
    low, high = float(masks.min()), float(masks.max())
    if low < 0 or high > 1:
        return Finding(
            what,
            "wrong",
            f"gives values from {low:.4g} to {high:.4g}, on {shown}",
            "if these are logits, say so in [teacher]",
        )
    if low == high:
        return Finding(
            what,
            "wrong",
            f"says {low:.4g} of every pixel of {shown}",
            "are its weights loaded? If it may well find nothing there, try an image of yours: --image FILE",
        )
    return Finding(what, "ok", f"loads, and gives {low:.3f} to {high:.3f}, mean {float(masks.mean()):.3f}, on {shown}")


def _opened(home: SiteHome) -> "Teacher":
    from consilium.clients.teachers.opening import open_teacher

    return open_teacher(home)


def _image(path: Path | None) -> "npt.NDArray[np.uint8]":
    from consilium.common.datasets import phantoms
    from consilium.common.images import read_image

    if path is not None:
        return read_image(path, _TRIED_SIZE, 1)[np.newaxis]
    return phantoms.make("north", 1, _TRIED_SIZE, 0)[0]


def _now() -> datetime:
    return datetime.now(UTC)
