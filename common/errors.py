"""Everything that can go wrong, drawn once: by whose fault it is and what to do next.

::

    ConsiliumError
    ├── SettingsError      a settings file or command line is wrong: mend it
    ├── DataError          an image, mask or folder is wrong: mend or remove it
    ├── StateError         a run folder, checkpoint or catalogue on disk is damaged or belongs to other settings
    ├── MachineError       this machine cannot do it now: a busy port, a full disk, a process that died
    ├── StudyError         the study cannot go on: too few sites, every image excluded
    │   └── WaitingError   no fault: it waits for people, and the same command goes on later
    │       ├── ConsentError      until some sites have consented to it
    │       └── AnswerFileError   until the answer files of offline sites are imported
    └── WireError          the other side broke the contract, or refused; carries a code of the closed list below

Every message says the rule, what came, and what to do. Only a `WireError`'s code and its fixed public text ever cross
the wire; the text of an exception may hold a path or a patient identifier and stays where it was raised.
"""

from enum import StrEnum
from typing import Final


class ConsiliumError(Exception):
    """Base of every error this package raises on purpose."""


class SettingsError(ConsiliumError):
    """A settings file or command line is wrong; lists every fault found, not only the first."""


class DataError(ConsiliumError):
    """An image, a mask or a folder cannot be used as it is."""


class StateError(ConsiliumError):
    """Something written earlier (run folder, checkpoint, catalogue) is damaged or belongs to other settings."""


class MachineError(ConsiliumError):
    """What is asked for cannot be done on this machine at present."""


class StudyError(ConsiliumError):
    """The study cannot go on."""


class WaitingError(StudyError):
    """The study waits for people. That is no fault, and the same command goes on later."""


class ConsentError(WaitingError):
    """Too few sites have consented to the study yet."""


class AnswerFileError(WaitingError):
    """The answer files of offline sites are not imported yet."""


class ErrorCode(StrEnum):
    """The closed list of codes that may cross the wire."""

    BAD_MESSAGE = "bad-message"
    BAD_PROTOCOL = "bad-protocol"
    BAD_MASK = "bad-mask"
    BAD_IMAGE = "bad-image"
    BAD_STUDENT = "bad-student"
    UNKNOWN_IMAGE = "unknown-image"
    UNKNOWN_STUDY = "unknown-study"
    BAD_SIGNATURE = "bad-signature"
    BAD_SEAL = "bad-seal"
    NOT_CONSENTED = "not-consented"
    REFUSED_BY_POLICY = "refused-by-policy"
    TOO_LARGE = "too-large"
    NO_DATA = "no-data"
    GATEWAY_UNREACHABLE = "gateway-unreachable"
    SITE_UNREACHABLE = "site-unreachable"
    TOO_LATE = "too-late"
    SITE_FAILED = "site-failed"


PUBLIC_TEXT: Final[dict[ErrorCode, str]] = {
    ErrorCode.BAD_MESSAGE: "the message does not follow the wire format",
    ErrorCode.BAD_PROTOCOL: "the two sides speak different protocol versions; install the same release on both",
    ErrorCode.BAD_MASK: "a soft mask is damaged, of another shape, or not of the image it is said to be of",
    ErrorCode.BAD_IMAGE: "an image does not match its hash in the catalogue",
    ErrorCode.BAD_STUDENT: "the student's weights do not fit its card",
    ErrorCode.UNKNOWN_IMAGE: "the image is not in the approved catalogue",
    ErrorCode.UNKNOWN_STUDY: "the study has not been described to this site",
    ErrorCode.BAD_SIGNATURE: "the signature of catalogue or study key does not verify",
    ErrorCode.BAD_SEAL: "a sealed answer is not the site's, not about what was asked, or not sealed to this study's key",
    ErrorCode.NOT_CONSENTED: "the site has not consented to this study",
    ErrorCode.REFUSED_BY_POLICY: "the site's policy does not allow this action",
    ErrorCode.TOO_LARGE: "the message is larger than the site accepts",
    ErrorCode.NO_DATA: "the site holds no labelled data for this action",
    ErrorCode.GATEWAY_UNREACHABLE: "the site's gateway did not answer",
    ErrorCode.SITE_UNREACHABLE: "the site is not connected, or its connection was lost",
    ErrorCode.TOO_LATE: "no answer came before the deadline",
    ErrorCode.SITE_FAILED: "the site failed; its own log says why",
}


class WireError(ConsiliumError):
    """The other side broke the contract, or refused.

    Parameters
    ----------
    code
        What happened, of the closed list.
    detail
        For the log of the side that raises it; never sent.
    """

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        self.code: Final = code
        self.detail: Final = detail
        super().__init__(f"{code}: {PUBLIC_TEXT[code]}" + (f" ({detail})" if detail else ""))
