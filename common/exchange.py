"""The exchange file: messages of the wire in a file, for a site without a network path.

A request file carries what the coordinator would have sent, an answer file what the site would have said. Whoever carries the
file can read what a SuperLink could have read, and change nothing: the whole is signed. Nothing but the header is looked at
before the signature was checked, and no message is read into memory that is larger than its reader expects. `docs/wire.md`
specifies the format.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, ValidationError

from consilium.common import wire
from consilium.common.errors import DataError, MachineError, SettingsError, WireError
from consilium.common.identity import signing
from consilium.common.settings import Name, Settings
from consilium.common.wire import Digest, Envelope

MAGIC: Final = b"consilium exchange 1\n"
SIGNATURE_BYTES: Final = 64
MOST_MESSAGES: Final = 2**20
MOST_BYTES: Final = 2**30
"""Of one message; a reader may set a lower bound."""
FRAME_BYTES: Final = 2**20
"""What a message's own framing may add to the bytes of its fields."""
_HEADER_BYTES: Final = 4096
_AT_A_TIME: Final = 2**20

Kind = Literal["request", "answer"]
FirstT = TypeVar("FirstT", bound=Envelope)
RestT = TypeVar("RestT", bound=Envelope)


class Header(Settings):
    """What a file says of itself: for, or by, which site; about which study; who signed; how many messages follow."""

    kind: Kind
    site: Name
    study: Digest
    catalogue: Digest
    signer: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    messages: Annotated[int, Field(ge=1, le=MOST_MESSAGES)]

    @property
    def fingerprint(self) -> str:
        """Of the signer's key, for people to compare."""
        return signing.fingerprint(bytes.fromhex(self.signer))


@contextmanager
def writing(path: Path, header: Header, key: Ed25519PrivateKey) -> Iterator[Callable[[Envelope], None]]:
    """Write a file, mode 0600, at once or not at all; gives what appends a message.

    Parameters
    ----------
    path
        Where it goes; what is there is never overwritten.
    header
        ``signer`` is the public half of ``key``, ``messages`` how many are going to be appended.
    key
        Signs the file.

    Raises
    ------
    SettingsError
        If ``path`` exists, or its folder does not.
    MachineError
        If the disk is full.
    """
    require_new(path)
    partial = path.with_name(f"{path.name}.partial")
    digest, count = hashlib.sha256(), 0

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    def append(message: Envelope) -> None:
        nonlocal count
        put(_framed(wire.to_bytes(message)))
        count += 1

    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        try:
            put(MAGIC + _framed(header.model_dump_json(by_alias=True).encode()))
            yield append
            if count != header.messages:
                raise ValueError(f"the header promises {header.messages} messages; got {count}")
            file.write(signing.sign(key, _domain(header.kind), digest.digest()))
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise MachineError(
                f"{path} could not be written ({error.strerror}); make room, then give the same command again"
            ) from None
        finally:
            partial.unlink(missing_ok=True)


def require_new(path: Path) -> None:
    """Refuse a path that cannot be written to: `SettingsError`."""
    if path.exists() or path.is_symlink():
        raise SettingsError(f"{path} is there already and is not overwritten; give another --out, or remove it")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; make it, or give another --out")


class ExchangeFile:
    """A file that is open for reading; made by `reading`. Its header is as it came until `verify` has looked."""

    def __init__(self, path: Path, file: BinaryIO, header: Header) -> None:
        self.path: Final = path
        self.header: Final = header
        self._file: Final = file
        self._first: Final = file.tell()
        self._end: Final = os.fstat(file.fileno()).st_size - SIGNATURE_BYTES

    def verify(self) -> None:
        """Check that the file is whole and signed by the header's signer: `DataError`."""
        self._require_whole()
        self._file.seek(0)
        digest, left = hashlib.sha256(), self._end
        while left:
            data = self._file.read(min(left, _AT_A_TIME))
            digest.update(data)
            left -= len(data)
        signer = bytes.fromhex(self.header.signer)
        try:
            signing.verify(signer, _domain(self.header.kind), digest.digest(), self._file.read(SIGNATURE_BYTES))
        except WireError:
            raise DataError(
                f"{self.path} was changed after it was made, or was not signed by {self.header.fingerprint}; get it again from "
                "whoever made it"
            ) from None

    def _require_whole(self) -> None:
        at = self._first
        for _ in range(self.header.messages):
            self._file.seek(at)
            at += 4 + int.from_bytes(self._file.read(4), "big")
            if at > self._end:
                break
        if at != self._end:
            raise DataError(
                f"{self.path} is cut off, or something was added to it: its messages would end at byte {at}, they end at "
                f"{self._end}. Copy it again."
            )

    def messages(self, first: type[FirstT], rest: type[RestT], most: int = MOST_BYTES) -> Iterator[FirstT | RestT]:
        """Give the messages in order, the first of one kind, the others of another; call `verify` before.

        Parameters
        ----------
        most
            Bytes a message may have; a larger one is not read.

        Raises
        ------
        DataError
            If one is larger, is no such message, or is about something else than the header says.
        """
        at = self._first
        for number in range(1, self.header.messages + 1):
            self._file.seek(at)
            size = int.from_bytes(self._file.read(4), "big")
            if size > min(most, MOST_BYTES):
                raise DataError(f"{self.path}, message {number}: at most {most} bytes are taken; it has {size}")
            at += 4 + size
            try:
                data = self._file.read(size)
                message = wire.from_bytes(first, data) if number == 1 else wire.from_bytes(rest, data)
            except WireError as error:
                raise DataError(f"{self.path}, message {number}: {error}") from None
            if (message.study, message.catalogue) != (self.header.study, self.header.catalogue):
                raise DataError(f"{self.path}, message {number}: it is about another study than the file's header says")
            yield message


@contextmanager
def reading(path: Path, kind: Kind) -> Iterator[ExchangeFile]:
    """Open a file of one kind; `DataError` if it is none."""
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file; give the path of {'a request' if kind == 'request' else 'an answer'} file"
        )
    with path.open("rb") as file:
        header = _read_header(path, file)
        if header.kind != kind:
            raise DataError(f"{path} is a file of the other kind: {header.kind} where {kind} is wanted")
        yield ExchangeFile(path, file, header)


def is_exchange_file(path: Path) -> bool:
    """Whether a path leads to an exchange file, whole or not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_header(path: Path, file: BinaryIO) -> Header:
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError(
            f"{path} is no exchange file of this version: it does not begin with {MAGIC.decode().strip()!r}"
        )
    size = int.from_bytes(file.read(4), "big")
    if not 0 < size <= _HEADER_BYTES:
        raise DataError(f"{path}: a header has at most {_HEADER_BYTES} bytes; it says {size}")
    try:
        return Header.model_validate_json(file.read(size))
    except ValidationError as error:
        faults = ", ".join(".".join(map(str, fault["loc"])) or "not JSON" for fault in error.errors())
        raise DataError(f"{path}: its header is wrong ({faults[:200]}); get it again from whoever made it") from None


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _domain(kind: Kind) -> bytes:
    return f"consilium exchange {kind} 1".encode()
