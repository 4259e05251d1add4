"""The four calls of a site, whoever carries them: the site itself, or its gateway at the other end of a socket."""

from typing import Protocol

from consilium.common.wire import (
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    FineTuneReply,
    FineTuneRequest,
    PredictReply,
    PredictRequest,
)


class SitePort(Protocol):
    """What a site answers; every call raises `WireError` and nothing else when it does not."""

    def describe(self, request: DescribeRequest, /) -> DescribeReply:
        """Be shown a study; say who the site is and which images it lacks."""
        ...

    def predict(self, request: PredictRequest, /) -> PredictReply:
        """Give the teacher's soft masks of images of an approved catalogue."""
        ...

    def evaluate(self, request: EvaluateRequest, /) -> EvaluateReply:
        """Evaluate teacher and student on the site's own labelled test images."""
        ...

    def fine_tune(self, request: FineTuneRequest, /) -> FineTuneReply:
        """Train a copy of the student on the site's own labelled images; the copy stays at the site."""
        ...
