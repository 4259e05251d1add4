"""The settings of a federation, ``federation.toml``: who takes part, and where the coordinator is."""

from ipaddress import ip_address
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from consilium.common.settings import Name, NameList, Settings

LOOPBACK: Final = ("localhost", "127.0.0.1")

Text = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[^\s/]+$")]


class SuperLinkSettings(Settings):
    """Where the SuperLink listens, and what the sites call it."""

    address: str = Field(pattern=r"^[^\s/]+:\d{1,5}$", description="host:port that the sites connect to")
    host: str = Field("0.0.0.0", description="address to listen on; all by default")  # noqa: S104 - the guard allows it
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0: that of the address")
    dns_names: tuple[Text, ...] = Field((), description="further names the certificate is for")
    ip_addresses: tuple[Text, ...] = Field((), description="further addresses the certificate is for")
    certificate_days: int = Field(365, ge=1, le=3650, description="days the certificate is valid")

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if not 1 <= int(self.address.rpartition(":")[2]) <= 65535:
            raise ValueError(f"address: a port is a number from 1 to 65535; got {self.address!r}")
        wrong = [text for text in self.ip_addresses if not _is_ip(text)]
        if wrong:
            raise ValueError(f"ip-addresses: {', '.join(wrong)} is no IP address; names go to dns-names")
        return self

    @property
    def listening_port(self) -> int:
        """The port to listen on."""
        return self.port or int(self.address.rpartition(":")[2])

    @property
    def certified(self) -> tuple[list[str], list[str]]:
        """DNS names and IP addresses for the certificate: the address's host, those listed, and this machine itself."""
        host = self.address.rpartition(":")[0].strip("[]")
        wanted = list(dict.fromkeys([host, *self.dns_names, *self.ip_addresses, *LOOPBACK]))
        return [name for name in wanted if not _is_ip(name)], [name for name in wanted if _is_ip(name)]


class InvitedSite(Settings):
    """One site of the settings file."""

    labels: NameList = Field((), description="what its masks show; those of the federation by default")


class FederationSettings(Settings):
    """``federation.toml``."""

    name: Name
    labels: NameList = Field(("lesion",), min_length=1, description="what the sites' masks show")
    superlink: SuperLinkSettings
    invitation_days: int = Field(30, ge=1, le=365, description="days in which a site may join with its kit")
    key_days: int = Field(365, ge=1, le=3650, description="days a site's key is taken after it was accepted")
    sites: dict[Name, InvitedSite] = Field(default_factory=dict)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
