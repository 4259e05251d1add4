"""Where a gateway may listen."""

from typing import Final

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


def check_address(address: str) -> None:
    """Refuse a gateway's address that other machines could reach.

    Raises
    ------
    ValueError
        Unless it is ``unix:PATH`` or a port on loopback.
    """
    if address.startswith("unix:"):
        if address == "unix:":
            raise ValueError("gateway.address names the socket: unix:PATH")
        return
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK or not port.isdecimal() or not 0 <= int(port) < 2**16:
        raise ValueError(
            f"a gateway listens on this machine only: unix:PATH or {LOOPBACK[0]}:PORT; got {address!r}. It holds the "
            "teacher and the data, and speaks without encryption"
        )
