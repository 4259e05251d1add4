"""A site without a network path: a request file is shown to it, and answered, as a gateway would: by the same `Site`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilium.clients import policy
from consilium.clients.consent import ConsentBook, State
from consilium.clients.settings import SiteHome
from consilium.clients.site import Site
from consilium.clients.studies import Shown, StudyBook
from consilium.common.catalogue import Manifest
from consilium.common.errors import ConsentError, DataError, ErrorCode, WireError
from consilium.common.exchange import FRAME_BYTES, ExchangeFile, reading, require_new, writing
from consilium.common.identity.signing import fingerprint, signing_key
from consilium.common.wire import DescribeRequest, PredictRequest

OnImages = Callable[[int, int], None]


@dataclass(frozen=True)
class Answered:
    """What went into an answer file: masks, images not answered, and who signed it."""

    study: str
    masks: int
    abstained: int
    signer: str


def show(home: SiteHome, path: Path) -> Shown:
    """Show a request file to a site, for a person to look at and decide about; nothing is answered.

    Raises
    ------
    DataError
        If the file was cut off or changed, or is for another site.
    WireError
        What the policy has against it.
    """
    book = StudyBook(home, ConsentBook(home.consents, home.settings.name))
    with _opened(home, path) as file:
        shown = book.show(_description(home, file))
        for request in _questions(home, file):
            book.keep_for_review(shown, request)
    return shown


def answer(home: SiteHome, site: Site, path: Path, out: Path, on_images: OnImages | None = None) -> Answered:
    """Answer a request file: a sealed and signed answer file, whole or not at all.

    Interrupted and started again, images that were answered get the same masks, and are not counted again.

    Parameters
    ----------
    home, site
        The site; it decides, answers and writes its audit log as it does behind its gateway.
    path, out
        The request, and where the answer goes.
    on_images
        Told how many images are answered, and how many there are.

    Raises
    ------
    ConsentError
        If nobody has consented; the study and its images are here to be looked at then.
    DataError
        If the file was cut off or changed, or is for another site.
    SettingsError
        If ``out`` exists.
    WireError
        What the site has against it.
    """
    require_new(out)
    with _opened(home, path) as file:
        description = _description(home, file)
        try:
            described = site.describe(description)
        except WireError as error:
            if error.code != ErrorCode.NOT_CONSENTED:
                raise
            raise _waits(home, show(home, path), path) from None
        key, masks, abstained = signing_key(home.answer_key), 0, 0
        header = file.header.model_copy(update={"kind": "answer", "signer": described.signer.hex()})
        images = len(Manifest.from_bytes(description.manifest).images)
        with writing(out, header, key) as write:
            write(described)
            for request in _questions(home, file):
                reply = site.predict(request)
                write(reply)
                masks, abstained = masks + len(reply.ids), abstained + len(reply.abstained)
                if on_images is not None:
                    on_images(masks + abstained, images)
    return Answered(header.study, masks, abstained, fingerprint(described.signer))


@contextmanager
def _opened(home: SiteHome, path: Path) -> Iterator[ExchangeFile]:
    """Open a request for this site by a coordinator it trusts; nothing but the header was looked at before."""
    with reading(path, "request") as file:
        if file.header.site != home.settings.name:
            raise DataError(
                f"{path} is for {file.header.site}; this is {home.settings.name}: ask for a request of its own"
            )
        policy.require_signer(home.settings.policy, bytes.fromhex(file.header.signer))
        file.verify()
        yield file


def _description(home: SiteHome, file: ExchangeFile) -> DescribeRequest:
    first = next(_messages(home, file))
    if not isinstance(first, DescribeRequest) or first.signer.hex() != file.header.signer:
        raise DataError(f"{file.path}: the catalogue is signed by another key than the file; ask for another request")
    if not first.sealing_key:
        raise DataError(f"{file.path}: the study has no key; an answer in a file is always sealed to one")
    return first


def _questions(home: SiteHome, file: ExchangeFile) -> Iterator[PredictRequest]:
    for message in _messages(home, file):
        if isinstance(message, PredictRequest):
            yield message


def _messages(home: SiteHome, file: ExchangeFile) -> Iterator[DescribeRequest | PredictRequest]:
    return file.messages(DescribeRequest, PredictRequest, home.settings.policy.max_message_mib * 2**20 + FRAME_BYTES)


def _waits(home: SiteHome, shown: Shown, path: Path) -> ConsentError:
    name, settings = shown.study.name, home.folder / "site.toml"
    state = ConsentBook(home.consents, home.settings.name).state(shown.request, shown.signer)
    told = {State.WAITING: "nobody here has consented to it yet", State.EXPIRED: "the consent to it has ended"}
    return ConsentError(
        f"{name} ({shown.request.study[:12]}) is not answered: {told.get(state, f'it is {state}')}. Nothing was written. Look at "
        f"it with `consilium-site review {settings} {path}`; whoever decides consents with `consilium-site approve {settings} "
        f"{path}`. Then give the same command again."
    )
