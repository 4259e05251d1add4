"""Sealing: soft masks that only the study's ServerApp can read, and that only the site can have made.

The coordinator has an X25519 key for the study. For each answer the site makes a key pair of its own, used once; the secret that
both halves share becomes, by HKDF-SHA256, the key of ChaCha20-Poly1305, under which each mask is encrypted with its place in the
answer as the nonce. The site signs the whole with Ed25519. What the answer is about (study, catalogue, site, which images) goes
into the key, the encryption and the signature: an answer cannot be passed off as one to another question, nor one mask as
another's. Whoever carries it (a SuperLink, its database, its operator) learns who answered about which images, and how many
bytes each mask takes.

A study's private key opens everything that was sealed to it, also what was recorded earlier: delete it with the study.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.identity.key_files import private_pem, read_private, write_private
from consilium.common.identity.signing import fingerprint, sign, verify

ANSWER_DOMAIN: Final = b"consilium sealed answer 1"
KEY_DOMAIN: Final = b"consilium study key 1"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16
"""What sealing adds to each mask."""


@dataclass(frozen=True)
class Sealed:
    """A sealed answer: the ``key`` of this answer (public, 32 bytes), the encrypted masks, the site's signature (64 bytes)."""

    key: bytes
    masks: list[bytes]
    signature: bytes


def about(study: str, catalogue: str, site: str, ids: Sequence[str], abstained: Sequence[str]) -> bytes:
    """Give the SHA-256 of what an answer is about: 32 bytes that no other question has."""
    text = hashlib.sha256()
    for part in ([study], [catalogue], [site], ids, abstained):
        text.update(len(part).to_bytes(4, "big"))
        for item in part:
            data = item.encode()
            text.update(len(data).to_bytes(4, "big") + data)
    return text.digest()


def seal(
    masks: Sequence[bytes],
    study_key: bytes,
    site_key: Ed25519PrivateKey,
    subject: bytes,
    once: X25519PrivateKey | None = None,
) -> Sealed:
    """Seal and sign an answer.

    Parameters
    ----------
    masks
        As they would travel in clear.
    study_key
        The study's public key, 32 bytes.
    site_key
        Signs.
    subject
        What the answer is about, from `about`.
    once
        The key of this answer; a fresh one where None. Never give one twice: it is an argument for known-answer tests.

    Raises
    ------
    WireError
        ``bad-seal`` if the study's key is no key.
    """
    once = once or X25519PrivateKey.generate()
    public = once.public_key().public_bytes_raw()
    cipher = ChaCha20Poly1305(_key(once, study_key, public, study_key, subject))
    sealed = [cipher.encrypt(_nonce(i), mask, subject) for i, mask in enumerate(masks)]
    return Sealed(public, sealed, sign(site_key, ANSWER_DOMAIN, _signed(subject, public, sealed)))


def unseal(sealed: Sealed, private: X25519PrivateKey, site_key: bytes, subject: bytes) -> list[bytes]:
    """Check who made an answer, and open it.

    Parameters
    ----------
    sealed
        As it came.
    private
        The study's.
    site_key
        The site's public key, 32 bytes.
    subject
        What the answer must be about, from `about`.

    Raises
    ------
    WireError
        ``bad-seal`` if it is not the site's, not about this, not for this study, or was changed.
    """
    try:
        verify(site_key, ANSWER_DOMAIN, _signed(subject, sealed.key, sealed.masks), sealed.signature)
    except WireError:
        raise WireError(ErrorCode.BAD_SEAL, f"not signed by {fingerprint(site_key)}") from None
    public = private.public_key().public_bytes_raw()
    cipher = ChaCha20Poly1305(_key(private, sealed.key, sealed.key, public, subject))
    try:
        return [cipher.decrypt(_nonce(i), mask, subject) for i, mask in enumerate(sealed.masks)]
    except InvalidTag:
        raise WireError(ErrorCode.BAD_SEAL, "sealed to another key, or changed") from None


def sign_study_key(signing: Ed25519PrivateKey, catalogue: str, public: bytes) -> bytes:
    """Sign a study's public key together with the catalogue's hash, as the coordinator."""
    return sign(signing, KEY_DOMAIN, bytes.fromhex(catalogue) + public)


def verify_study_key(signer: bytes, catalogue: str, public: bytes, signature: bytes) -> None:
    """Check `sign_study_key`: `WireError` ``bad-signature``."""
    verify(signer, KEY_DOMAIN, bytes.fromhex(catalogue) + public, signature)


def make_study_key(path: Path) -> X25519PrivateKey:
    """Make a study's key and write it (PEM, PKCS #8, mode 0600) to the new file ``path``; `StateError` if it exists."""
    key = X25519PrivateKey.generate()
    write_private(path, private_pem(key))
    return key


def load_study_key(path: Path) -> X25519PrivateKey:
    """Load what `make_study_key` wrote; `StateError` if the file is missing, damaged or another kind of key."""
    key = read_private(path, "study key")
    if not isinstance(key, X25519PrivateKey):
        raise StateError(f"a study's key is an X25519 key; {path} holds a {type(key).__name__}")
    return key


def _key(own: X25519PrivateKey, other: bytes, once: bytes, study: bytes, subject: bytes) -> bytes:
    """The key of one answer; both public halves go into it, so that it belongs to this exchange alone."""
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:  # of another length, or a point that shares nothing
        raise WireError(ErrorCode.BAD_SEAL, "no X25519 key") from None
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=once + study, info=ANSWER_DOMAIN + subject).derive(shared)


def _nonce(place: int) -> bytes:
    """Twelve bytes; a key is of one answer, so places do not repeat under it."""
    return place.to_bytes(12, "big")


def _signed(subject: bytes, public: bytes, masks: Sequence[bytes]) -> bytes:
    digests = b"".join(hashlib.sha256(mask).digest() for mask in masks)
    return subject + public + digests
