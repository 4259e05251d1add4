"""The data sets by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from consilium.common.datasets import (
    bus_bra,
    busi,
    ddti,
    dicom,
    folder,
    isic2019,
    isic_segmentation,
    nerve,
    tn3k,
    voc2012,
)
from consilium.common.datasets.cases import Case, LeftOut
from consilium.common.errors import DataError, SettingsError


@dataclass(frozen=True)
class DataSet:
    """A data set that can be read.

    Attributes
    ----------
    cases
        Lists its cases, given its folder.
    what
        What it is, in a line.
    layout
        What the folder holds.
    has_masks
        Whether some or all of its cases have masks.
    groups
        What its groups are; "near duplicates" where it names none, so that they have to be computed or given.
    citation
        Whom to cite, and the licence as far as it is known.
    left_out
        Tells, given its folder, which of the published images are no cases; None where all are.
    """

    cases: Callable[[Path], list[Case]]
    what: str
    layout: str
    has_masks: bool
    groups: str
    citation: str
    left_out: Callable[[Path], list[LeftOut]] | None = None


DATA_SETS: Final[Mapping[str, DataSet]] = MappingProxyType(
    {
        "busi": DataSet(
            busi.cases,
            "breast ultrasound, lesions (the paper's Baheya)",
            "{benign,malignant}/NAME (i).png with NAME (i)_mask.png, NAME (i)_mask_1.png, ...",
            True,
            "near duplicates",
            "Al-Dhabyani et al., Data in Brief 28:104863, 2020; CC BY or CC0, as its mirrors say",
            busi.left_out,
        ),
        "bus-bra": DataSet(
            bus_bra.cases,
            "breast ultrasound, lesions, with patients",
            "Images/bus_0001-l.png with Masks/mask_0001-l.png, and bus_data.csv",
            True,
            "patients",
            "Gómez-Flores et al., Medical Physics 51:3110, 2024; CC BY 4.0",
        ),
        "ddti": DataSet(
            ddti.cases,
            "thyroid ultrasound, nodules (the paper's Thyroid)",
            "CASE_1.jpg, CASE_2.jpg, ... with CASE.xml; or image/10.PNG with mask/10.PNG",
            True,
            "cases; near duplicates in the image/ and mask/ form",
            "Pedraza et al., Proc. SPIE 9287:92870W, 2015; open access, no licence text",
        ),
        "tn3k": DataSet(
            tn3k.cases,
            "thyroid ultrasound, nodules",
            "{trainval,test}-image/0000.jpg with {trainval,test}-mask/0000.jpg",
            True,
            "near duplicates",
            "Gong et al., Computers in Biology and Medicine 155:106389, 2023; open access, see its authors' page for the terms",
        ),
        "nerve": DataSet(
            nerve.cases,
            "neck ultrasound, the brachial plexus (the paper's Nerve)",
            "train/SUBJECT_N.tif with train/SUBJECT_N_mask.tif or train_masks.csv, and test/N.tif",
            True,
            "subjects",
            "Kaggle, Ultrasound Nerve Segmentation, 2016; by the rules of that competition",
        ),
        "isic2019": DataSet(
            isic2019.cases,
            "dermoscopy (the paper's Skin), without masks",
            "ISIC_2019_Training_Input/ISIC_0000000.jpg and ISIC_2019_Training_Metadata.csv",
            False,
            "lesions",
            "Tschandl et al. 2018, Codella et al. 2018 and Combalia et al. 2019; CC BY-NC 4.0",
        ),
        "isic-segmentation": DataSet(
            isic_segmentation.cases,
            "dermoscopy, lesions (ISIC 2016, 2017 or 2018)",
            "folders of ISIC_0000000.jpg and of ISIC_0000000_segmentation.png",
            True,
            "near duplicates",
            "Gutman et al. 2016, Codella et al. 2018 and 2019; CC0, 2018: CC BY-NC 4.0",
        ),
        "voc2012": DataSet(
            voc2012.cases,
            "photographs, any of 20 classes of things (PASCAL VOC 2012)",
            "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt",
            True,
            "near duplicates",
            "Everingham et al., International Journal of Computer Vision 111:98, 2015; Flickr's terms of use",
        ),
        "dicom": DataSet(
            dicom.cases,
            "your own DICOM pictures and loops, without masks, a case a frame",
            "any DICOM files, in sub-folders too",
            False,
            "files",
            "your own",
        ),
        "folder": DataSet(
            folder.cases,
            "your own labelled images",
            "images/a.png with masks/a.png or masks/a_mask.png, masks/a_mask_1.png, ...",
            True,
            "near duplicates",
            "your own",
        ),
        "images": DataSet(
            folder.images,
            "your own images without masks",
            "any image files, in sub-folders too",
            False,
            "near duplicates",
            "your own",
        ),
    }
)


def cases(name: str, folder: Path) -> list[Case]:
    """List the cases of a data set.

    Parameters
    ----------
    name
        A key of `DATA_SETS`.
    folder
        The data set as published and unpacked.

    Raises
    ------
    SettingsError
        If there is no data set of this name.
    DataError
        If the folder is not there, or is not laid out as published.
    """
    if name not in DATA_SETS:
        raise SettingsError(f"there is no data set {name!r}; known are {', '.join(DATA_SETS)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; {name} is laid out as {DATA_SETS[name].layout}")
    return DATA_SETS[name].cases(folder)


def left_out(name: str, folder: Path) -> list[LeftOut]:
    """Tell which images of a data set, as `cases` finds it, are none of its cases."""
    tell = DATA_SETS[name].left_out
    return tell(folder) if tell is not None else []
