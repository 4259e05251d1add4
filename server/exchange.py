"""Offline sites, at the coordinator: a study's questions into a request file, an answer file into the ledger.

An answer that is imported is held as if it had come over the network: the next start of the study folds it, and the pseudo masks
have the same bytes. Everything is checked before anything is written: who signed, about what, each seal, each mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilium.common import soft_mask, wire
from consilium.common.catalogue import open_catalogue
from consilium.common.errors import AnswerFileError, DataError, ErrorCode, SettingsError, StateError, WireError
from consilium.common.exchange import FRAME_BYTES, ExchangeFile, Header, reading, writing
from consilium.common.identity.signing import fingerprint
from consilium.common.study import Study
from consilium.server import labelled_set, questions
from consilium.server.participants import Described
from consilium.server.run_folder import RunFolder
from consilium.server.seals import Seals
from consilium.server.study_run import StudyRun

OnImages = Callable[[int], None]


@dataclass(frozen=True)
class Imported:
    """What an answer file brought: the site, how many masks, and how many images it does not answer."""

    site: str
    masks: int
    abstained: int
    signer: str


def export(
    root: Path, site: str, key: Ed25519PrivateKey, out: Path | None = None, on_images: OnImages = lambda _done: None
) -> Path:
    """Write the request file for an offline site, and give where it is.

    Parameters
    ----------
    root
        The run folder; holds study and catalogue.
    site
        One of the study's ``collect.offline``.
    key
        The coordinator's, which signed the catalogue.
    out
        Where it goes; ``STUDY-SITE.request`` in the current folder where None.
    on_images
        Told how many images are written.

    Raises
    ------
    SettingsError
        If the study does not call the site offline, the key is another, the file exists, or a stack cannot be fitted.
    StateError
        If the study has no key to seal answers to.
    """
    folder = RunFolder(root)
    study, catalogue = folder.open_study(), open_catalogue(folder.catalogue)
    _require_offline(study, site)
    labelled_set.require(folder, study, catalogue)
    catalogue.require_key(key)
    seals = Seals(folder, catalogue.hash)
    if not seals.key:
        raise StateError(
            f"an answer in a file is always sealed, and {folder.root} offers no key: `consilium catalogue seal {folder.root} "
            "--key KEY` makes one"
        )
    out = out or Path(f"{study.name}-{site}.request")
    count = questions.chunks(study, catalogue)
    header = Header(
        kind="request",
        site=site,
        study=study.digest,
        catalogue=catalogue.hash,
        signer=catalogue.signer.hex(),
        messages=1 + count,
    )
    with writing(out, header, key) as write:
        on_images(0)
        write(questions.show(study, catalogue, seals))
        for number in range(count):
            write(questions.with_pixels(study, catalogue, number))
            on_images(min((number + 1) * study.collect.chunk, len(catalogue)))
    return out


def import_answer(run: StudyRun, path: Path, signed_by: str = "", on_images: OnImages = lambda _done: None) -> Imported:
    """Take the answer file of an offline site into the ledger; whole, or not at all where something is wrong with it.

    Parameters
    ----------
    run
        The study; whoever calls holds its folder's lock.
    path
        The file.
    signed_by
        Fingerprint of the site's key, as the site told it; needed where the key is not known yet, since nobody vouches for who
        brought a file.
    on_images
        Told how many images are checked.

    Raises
    ------
    DataError
        If it was cut off or changed, or anything in it is not as it must be; nothing was taken in.
    SettingsError
        If it is of another study, catalogue or site, or its signer was not confirmed.
    StateError
        If it is imported already, or comes too late.
    """
    with reading(path, "answer") as file:
        header = file.header
        _require_offline(run.study, header.site)
        if (header.study, header.catalogue) != (run.study.digest, run.catalogue.hash):
            raise SettingsError(
                f"{path} answers study {header.study[:12]} on catalogue {header.catalogue[:12]}; {run.folder.root} is study "
                f"{run.study.digest[:12]} on {run.catalogue.hash[:12]}: export a request of this one"
            )
        _require_signer(run.seals, file, signed_by)
        file.verify()
        _require_of_use(run, header.site)
        described = _described(run, file)
        masks = abstained = 0
        on_images(0)
        for number, reply in enumerate(_replies(run, file)):
            _check(run, path, header.site, reply, number, described.labels)
            masks, abstained = masks + len(reply.ids), abstained + len(reply.abstained)
            on_images(min((number + 1) * run.study.collect.chunk, len(run.catalogue)))
        _keep(run, file, described)
    run.ledger.tell(
        "collect", f"its answer file was imported: {masks} masks, {abstained} images not answered", header.site
    )
    if run.ledger.results("awaited-answer").get("") and not any(
        map(run.participants.lacks_answers, run.study.collect.offline)
    ):
        run.ledger.awaits(AnswerFileError("Every answer file is imported: start the same command again."))
    return Imported(header.site, masks, abstained, header.fingerprint)


def _require_offline(study: Study, site: str) -> None:
    if site not in study.collect.offline:
        raise SettingsError(
            f"files are exchanged with the study's collect.offline ({', '.join(study.collect.offline) or 'empty'}); {site} is "
            "not among them. The study's settings say so from its first start on"
        )


def _require_signer(seals: Seals, file: ExchangeFile, signed_by: str) -> None:
    """Refuse a key that is not the site's: a TLS connection vouches for a site, a file that someone brings does not."""
    header = file.header
    known = seals.known(header.site)
    if known is None and signed_by != header.fingerprint:
        told = f"that is not {signed_by}" if signed_by else "which is not known here"
        raise SettingsError(
            f"{file.path} is signed by {header.fingerprint}, {told}. Ask {header.site}, by telephone, what `consilium-site "
            "answer` told there; if it is the same, give it as --signed-by"
        )
    if known is not None and known != bytes.fromhex(header.signer):
        raise SettingsError(
            f"{file.path} is signed by {header.fingerprint}; the key of {header.site} is {fingerprint(known)}. If the site made "
            f"a new key (ask by telephone), take its line out of {seals.table}"
        )


def _require_of_use(run: StudyRun, site: str) -> None:
    collected = run.ledger.stage("collect")
    if collected is not None and collected.finished:
        raise StateError(
            f"the soft masks of {run.study.name} are all collected; an answer of {site} is of no use to it any more"
        )
    if not run.participants.lacks_answers(site):
        raise StateError(f"the answer of {site} is imported already; nothing was changed. Start the study")


def _messages(run: StudyRun, file: ExchangeFile) -> Iterator[wire.DescribeReply | wire.PredictReply]:
    """The messages of an answer, none larger than an honest one can be."""
    pixels = int(np.prod(run.study.mask_shape))
    most = run.study.collect.chunk * (pixels + pixels // 100 + 1024) + len(run.catalogue) + FRAME_BYTES
    return file.messages(wire.DescribeReply, wire.PredictReply, most)


def _described(run: StudyRun, file: ExchangeFile) -> Described:
    """What the site says of itself in the file's first message, once it fits to the rest of the file and to the study."""
    expected = 1 + questions.chunks(run.study, run.catalogue)
    if file.header.messages != expected:
        raise DataError(f"{file.path}: an answer to this study has {expected} messages; it has {file.header.messages}")
    reply = next(_messages(run, file))
    if not isinstance(reply, wire.DescribeReply) or (reply.site, reply.signer.hex()) != (
        file.header.site,
        file.header.signer,
    ):
        raise DataError(f"{file.path}: its first message is not by {file.header.site}, who signed the file")
    try:
        return run.participants.described(reply.site, reply)
    except WireError as error:
        raise DataError(f"{file.path}: {error}") from None


def _replies(run: StudyRun, file: ExchangeFile) -> Iterator[wire.PredictReply]:
    """The answers, chunk by chunk."""
    for message in _messages(run, file):
        if isinstance(message, wire.PredictReply):
            yield message


def _check(run: StudyRun, path: Path, site: str, reply: wire.PredictReply, number: int, labels: int) -> None:
    """Refuse an answer that would be refused over the network."""
    size, place = run.study.image.size, questions.places(run.study, run.catalogue, number)
    try:
        if reply.site != site:
            raise WireError(ErrorCode.BAD_MESSAGE, f"in the name of {reply.site}")
        if len(reply.masks) != len(reply.ids) or sorted(reply.ids + reply.abstained) != sorted(place):
            raise WireError(ErrorCode.BAD_MASK, "not exactly one mask, or an abstention, for each image asked for")
        for mask in run.seals.open(site, reply):
            soft_mask.decode(mask, (labels, size, size))
    except WireError as error:
        raise DataError(f"{path}, images {min(place.values())} to {max(place.values())}: {error}") from None


def _keep(run: StudyRun, file: ExchangeFile, described: Described) -> None:
    """Hold the answers to what is not finished yet. Done again after it was killed, it ends the same."""
    site, finished = file.header.site, run.ledger.finished_chunks()
    for number, reply in enumerate(_replies(run, file)):
        if number in finished:
            continue
        place = questions.places(run.study, run.catalogue, number)
        run.ledger.forget(site, number, list(place.values()))  # an import that was killed may have been of another file
        gone, mask_bytes = [place[name] for name in reply.abstained], sum(map(len, reply.masks))
        run.ledger.answered(site, number, len(reply.ids), mask_bytes, reply.seconds, wire.to_bytes(reply), gone)
    moved = list(_moved(run, file))
    with run.ledger.together():
        for action, sent, received in moved:
            run.ledger.moved(site, action, sent, received)
        run.participants.takes_part(site, described)


def _moved(run: StudyRun, file: ExchangeFile) -> Iterator[tuple[str, int, int]]:
    """Per message: its action, the bytes of the site's answer, and those of the question in the request that it answers.

    They are counted as over the network, where a site that lacks all images moves the same bytes.
    """
    count = questions.chunks(run.study, run.catalogue)
    asked = chain(
        [questions.show(run.study, run.catalogue, run.seals)],
        (questions.with_pixels(run.study, run.catalogue, number) for number in range(count)),
    )
    for question, reply in zip(asked, _messages(run, file), strict=True):
        action = "describe" if isinstance(question, wire.DescribeRequest) else "predict"
        yield action, wire.size_of(reply), wire.size_of(question)
