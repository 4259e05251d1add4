"""What a coordinator asks of every site, the same over the network and in a file: to be shown a study, and its images."""

from consilium.common import planes, wire
from consilium.common.catalogue import Catalogue
from consilium.common.settings import to_toml
from consilium.common.study import Study
from consilium.server.seals import Seals


def show(study: Study, catalogue: Catalogue, seals: Seals) -> wire.DescribeRequest:
    """Give the request that shows a study, its list of images and its key."""
    return wire.DescribeRequest(
        study=study.digest,
        catalogue=catalogue.hash,
        settings=to_toml(study),
        manifest=catalogue.manifest_bytes,
        signature=catalogue.signature,
        signer=catalogue.signer,
        sealing_key=seals.key,
        sealing_signature=seals.signature,
    )


def with_pixels(study: Study, catalogue: Catalogue, number: int) -> wire.PredictRequest:
    """Give the request for a chunk, by its number, with the pixels of all its images."""
    chunk = slice(number * study.collect.chunk, (number + 1) * study.collect.chunk)
    return wire.PredictRequest(
        study=study.digest,
        catalogue=catalogue.hash,
        ids=[entry.id for entry in catalogue.manifest.images[chunk]],
        pixels=[planes.encode(pixels) for pixels in catalogue.pixels[chunk]],
    )


def chunks(study: Study, catalogue: Catalogue) -> int:
    """How many chunks the images of a study make."""
    return -(-len(catalogue) // study.collect.chunk)


def places(study: Study, catalogue: Catalogue, number: int) -> dict[str, int]:
    """Positions in the catalogue of the images of a chunk, by their ids."""
    first = number * study.collect.chunk
    chunk = catalogue.manifest.images[first : first + study.collect.chunk]
    return {entry.id: place for place, entry in enumerate(chunk, first)}
