"""Every data set, on a few small files in the layout it is published in, with its quirks."""

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, UltrasoundMultiFrameImageStorage

from consilium.common.datasets import bus_bra, busi, dicom, folder, isic_segmentation, nerve, registry, tn3k, voc2012
from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError, SettingsError

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)  # an image 8 wide and 6 high


def save(path: Path, pixels: np.ndarray | None = None, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GRAY if pixels is None else pixels).save(path, **how)
    return path


def square(top: int = 1, left: int = 2, height: int = 3, width: int = 4) -> np.ndarray:
    drawn = np.zeros(GRAY.shape, np.bool_)
    drawn[top : top + height, left : left + width] = True
    return drawn


def as_gray(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * np.uint8(255)


def target(case: Case) -> np.ndarray:
    assert case.load_mask is not None
    return case.load_mask()


def named(cases: Sequence[Case]) -> list[tuple[str, str, str]]:
    return [(Path(case.source).name, case.group, case.kind) for case in cases]


# --- the registry -------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no data set 'buzi'; known are busi, bus-bra, ddti"):
        registry.cases("buzi", tmp_path)


@pytest.mark.parametrize("name", registry.DATA_SETS)
def test_an_absent_or_empty_folder_is_named_with_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        registry.cases(name, tmp_path / "absent")
    with pytest.raises(DataError, match=str(tmp_path)):
        registry.cases(name, tmp_path)


def test_every_data_set_tells_all_about_itself() -> None:
    for told in registry.DATA_SETS.values():
        assert all((told.what, told.layout, told.groups, told.citation))


# --- a folder ---------------------------------------------------------------------------------------------------


def test_a_folder_unites_the_masks_of_an_image_and_sorts_as_people_do(tmp_path: Path) -> None:
    for name in ("a10.png", "a2.jpg", "sub/b.png", "._a2.jpg"):
        save(tmp_path / "images" / name)
    save(tmp_path / "masks/a10_mask.png", as_gray(square(0, 0, 1, 1)))
    save(tmp_path / "masks/a10_mask_1.png", as_gray(square(5, 7, 1, 1)))
    save(tmp_path / "masks/a2.bmp", as_gray(square()))
    save(tmp_path / "masks/b.png", as_gray(square(0, 0, 0, 0)))
    cases = folder.cases(tmp_path)
    assert [Path(case.source).name for case in cases] == ["a2.jpg", "a10.png", "b.png"]
    assert np.argwhere(target(cases[1])).tolist() == [[0, 0], [5, 7]]
    assert not target(cases[2]).any()


def test_a_folder_names_images_without_a_mask(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png")
    save(tmp_path / "images/b.png")
    save(tmp_path / "masks/b.png", as_gray(square()))
    with pytest.raises(DataError, match=r"needs a mask of the same name under masks/; 1 of 2 have none: a\.png"):
        folder.cases(tmp_path)


def test_images_are_cases_without_masks(tmp_path: Path) -> None:
    save(tmp_path / "x/a.png")
    (case,) = registry.cases("images", tmp_path)
    assert case.load_mask is None
    assert np.array_equal(np.asarray(case.load_image()), GRAY)


# --- BUSI -------------------------------------------------------------------------------------------------------


def make_busi(root: Path) -> Path:
    for kind in ("benign", "malignant", "normal"):
        save(root / kind / f"{kind} (1).png", np.repeat(GRAY[..., None], 3, 2))
    save(root / "benign/benign (1)_mask.png", square(0, 0, 1, 1))  # mode 1
    save(root / "benign/benign (1)_mask_1.png", as_gray(square(1, 1, 1, 1)))
    painted = np.zeros((6, 8, 4), np.uint8)
    painted[..., 3] = 255
    painted[square()] = 255
    save(root / "malignant/malignant (1)_mask.png", painted)  # RGBA with full alpha
    save(root / "normal/normal (1)_mask.png", as_gray(square(0, 0, 0, 0)))
    return root


def test_busi_is_its_lesions_and_normal_images_where_asked_for(tmp_path: Path) -> None:
    make_busi(tmp_path / "Dataset_BUSI_with_GT")
    cases = busi.cases(tmp_path)
    assert named(cases) == [("benign (1).png", "", "benign"), ("malignant (1).png", "", "malignant")]
    assert np.argwhere(target(cases[0])).tolist() == [[0, 0], [1, 1]]
    assert np.array_equal(target(cases[1]), square())
    (normal,) = busi.cases(tmp_path, kinds=["normal"])
    assert not target(normal).any()


def test_busi_says_that_its_normal_images_are_left_out_where_they_are_there(tmp_path: Path) -> None:
    make_busi(tmp_path / "Dataset_BUSI_with_GT")
    (told,) = registry.left_out("busi", tmp_path)
    assert (told.where, told.images) == ("normal/", 1)
    shutil.rmtree(tmp_path / "Dataset_BUSI_with_GT" / "normal")
    assert registry.left_out("busi", tmp_path) == []


def test_busi_names_a_missing_folder_and_a_missing_mask(tmp_path: Path) -> None:
    make_busi(tmp_path)
    (tmp_path / "malignant/malignant (1)_mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 have none: malignant \(1\)\.png"):
        busi.cases(tmp_path)
    for path in (tmp_path / "malignant").iterdir():
        path.unlink()
    (tmp_path / "malignant").rmdir()
    with pytest.raises(DataError, match=r"malignant missing \(found: benign, normal\)"):
        busi.cases(tmp_path)


# --- nerve ------------------------------------------------------------------------------------------------------

# Two runs, counted from 1 down the columns of an image 6 high: rows 1 and 2 of the first column, and row 0 of the second.
RUNS, ROWS_AND_COLUMNS = "2 2 7 1", [[0, 1], [1, 0], [2, 0]]


def make_nerve(root: Path, rows: str) -> Path:
    for name in ("1_1", "1_10", "1_2", "12_1"):
        save(root / f"train/{name}.tif")
    save(root / "train/1_1_mask.tif", as_gray(square()))
    save(root / "train/1_2_mask.tif", as_gray(square(0, 0, 0, 0)))
    save(root / "test/1.tif")
    (root / "train_masks.csv").write_text(f"subject,img,pixels\n{rows}")
    return root


def test_nerve_groups_by_subject_and_takes_run_lengths_where_a_mask_is_absent(tmp_path: Path) -> None:
    cases = nerve.cases(make_nerve(tmp_path, f"1,1,1 1\n1,10,{RUNS}\n12,1,\n"))
    assert named(cases) == [
        ("1_1.tif", "1", "train"),
        ("1_2.tif", "1", "train"),
        ("1_10.tif", "1", "train"),
        ("12_1.tif", "12", "train"),
        ("1.tif", "", "test"),
    ]
    assert np.array_equal(target(cases[0]), square())
    assert np.argwhere(target(cases[2])).tolist() == ROWS_AND_COLUMNS
    assert not target(cases[1]).any()
    assert not target(cases[3]).any()
    assert cases[4].load_mask is None


def test_nerve_names_images_with_neither_mask_nor_run_lengths(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"NAME_mask.tif beside it, or a row of train_masks.csv; 1 of 4 have none: 12_1.tif"
    ):
        nerve.cases(make_nerve(tmp_path, f"1,10,{RUNS}\n"))


@pytest.mark.parametrize(
    "runs", ["1", "0 3", "48 2", "1 2 3", "1 -1", "1 x", "9223372036854775807 9223372036854775807"]
)
def test_run_lengths_beyond_the_image_are_refused(runs: str, tmp_path: Path) -> None:
    cases = nerve.cases(make_nerve(tmp_path, f"1,10,{runs}\n12,1,\n"))
    with pytest.raises(DataError, match=r"pairs of a start, from 1, and a length, within 8 x 6 pixels"):
        target(cases[2])


def test_nerve_says_what_is_odd_about_a_name(tmp_path: Path) -> None:
    save(make_nerve(tmp_path, "") / "train/subject.tif")
    with pytest.raises(DataError, match=r"named SUBJECT_NUMBER.tif; found subject.tif"):
        nerve.cases(tmp_path)


# --- ISIC -------------------------------------------------------------------------------------------------------


def make_isic2019(root: Path) -> Path:
    for name in ("ISIC_0000000", "ISIC_0000002_downsampled", "ISIC_0000003"):
        save(root / f"ISIC_2019_Training_Input/{name}.jpg")
    (root / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_0000000,55.0,anterior torso,,female\n"
        "ISIC_0000002_downsampled,30.0,,BCN_0000001,female\n"
        "ISIC_0000003,30.0,,BCN_0000001,female\n"
    )
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text(
        "image,MEL,NV\nISIC_0000000,0.0,1.0\nISIC_0000002_downsampled,1.0,0.0\nISIC_0000003,1.0,0.0\n"
    )
    return root


def test_isic_2019_groups_by_lesion_and_has_no_masks(tmp_path: Path) -> None:
    cases = registry.cases("isic2019", make_isic2019(tmp_path))
    assert named(cases) == [
        ("ISIC_0000000.jpg", "", "NV"),
        ("ISIC_0000002_downsampled.jpg", "BCN_0000001", "MEL"),
        ("ISIC_0000003.jpg", "BCN_0000001", "MEL"),
    ]
    assert all(case.load_mask is None for case in cases)


def test_isic_2019_names_images_that_are_not_in_the_metadata(tmp_path: Path) -> None:
    save(make_isic2019(tmp_path) / "ISIC_2019_Training_Input/ISIC_0000009.jpg")
    with pytest.raises(
        DataError, match=r"every image has a row of ISIC_2019_Training_Metadata.csv; 1 of 4 .* ISIC_0000009.jpg"
    ):
        registry.cases("isic2019", tmp_path)
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text("image,sex\n")
    with pytest.raises(DataError, match=r"columns image, lesion_id; lesion_id missing \(found: image, sex\)"):
        registry.cases("isic2019", tmp_path)


def make_isic_segmentation(root: Path) -> Path:
    for part, numbers in (("Training", (0, 2)), ("Validation", (7,))):
        for number in numbers:
            save(root / f"ISIC-2017_{part}_Data/ISIC_{number:07}.jpg")
            save(root / f"ISIC-2017_{part}_Data/ISIC_{number:07}_superpixels.png")
    save(root / "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png", as_gray(square()))
    save(root / "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000002_Segmentation.png", as_gray(square(0, 0, 1, 1)))
    return root


def test_isic_masks_are_found_in_the_folder_beside_and_a_part_without_them_has_none(tmp_path: Path) -> None:
    cases = isic_segmentation.cases(make_isic_segmentation(tmp_path))
    train, held = "ISIC-2017_Training_Data", "ISIC-2017_Validation_Data"
    assert named(cases) == [
        ("ISIC_0000000.jpg", "", train),
        ("ISIC_0000002.jpg", "", train),
        ("ISIC_0000007.jpg", "", held),
    ]
    assert np.array_equal(target(cases[0]), square())
    assert np.argwhere(target(cases[1])).tolist() == [[0, 0]]
    assert cases[2].load_mask is None


def test_isic_names_the_image_of_a_part_that_lacks_its_mask_and_names_that_occur_twice(tmp_path: Path) -> None:
    make_isic_segmentation(tmp_path)
    save(tmp_path / "ISIC-2017_Training_Data/ISIC_0000005.jpg")
    with pytest.raises(DataError, match=r"1 of 3 have none: ISIC_0000005"):
        isic_segmentation.cases(tmp_path)
    save(tmp_path / "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg")
    with pytest.raises(DataError, match=r"ISIC_0000000 occur more than once; give the folder of one release"):
        isic_segmentation.cases(tmp_path)


# --- PASCAL VOC -------------------------------------------------------------------------------------------------


def make_voc(root: Path) -> Path:
    for name in ("2007_000027", "2007_000032", "2007_000033"):
        save(root / f"JPEGImages/{name}.jpg", np.repeat(GRAY[..., None], 3, 2))
    classes = np.zeros(GRAY.shape, np.uint8)
    classes[0, :4] = (1, 15, 20, 255)
    for name in ("2007_000032", "2007_000033"):
        mask = Image.fromarray(classes, "L")
        mask.putpalette(
            [value for i in range(256) for value in (i, 255 - i, 128)]
        )  # colours say nothing: index 0 is light
        (root / "SegmentationClass").mkdir(parents=True, exist_ok=True)
        mask.save(root / f"SegmentationClass/{name}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000033\n")
    return root


def test_voc_counts_every_class_as_target_and_the_line_between_as_none(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit/VOC2012")
    cases = voc2012.cases(tmp_path)
    assert named(cases) == [
        ("2007_000027.jpg", "", ""),
        ("2007_000032.jpg", "", "train"),
        ("2007_000033.jpg", "", "val"),
    ]
    assert cases[0].load_mask is None
    assert np.argwhere(target(cases[1])).tolist() == [[0, 0], [0, 1], [0, 2]]


def test_voc_names_listed_images_without_a_mask_and_masks_of_colours(tmp_path: Path) -> None:
    make_voc(tmp_path)
    save(tmp_path / "SegmentationClass/2007_000033.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"2007_000033.png: masks of PASCAL VOC hold a class number .* this one is RGB"):
        target(voc2012.cases(tmp_path)[2])
    (tmp_path / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 have none: 2007_000033"):
        voc2012.cases(tmp_path)


# --- DDTI -------------------------------------------------------------------------------------------------------


def outline(left: int, top: int, right: int, bottom: int) -> dict[str, object]:
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return {"points": [{"x": x, "y": y} for x, y in corners], "annotation": {}, "regionType": "freehand"}


def ddti_xml(*marks: tuple[int, str], head: str = '<?xml version="1.0" encoding="UTF-8"?>') -> str:
    drawn = "".join(f"<mark><image>{number}</image><svg>{text}</svg></mark>" for number, text in marks)
    return f"{head}<case><number>7</number><age>61</age><sex>F</sex><tirads>4a</tirads>{drawn}</case>"


def make_ddti(root: Path, xml: str) -> Path:
    for name in ("7_1", "7_2", "7_3", "10_1"):
        save(root / f"{name}.jpg", np.repeat(GRAY[..., None], 3, 2))
    (root / "7.xml").write_text(xml)
    return root


def test_ddti_fills_the_outlines_of_every_mark_of_an_image(tmp_path: Path) -> None:
    both = json.dumps([outline(0, 0, 1, 1), outline(6, 4, 7, 5)])
    broken_off = json.dumps([outline(2, 1, 4, 3)])[:-12]  # ends as two of the published files do
    xml = ddti_xml((1, both), (1, json.dumps([outline(3, 2, 3, 3)])), (2, broken_off), (3, ""))
    cases = registry.cases("ddti", make_ddti(tmp_path, xml))
    assert named(cases) == [
        ("7_1.jpg", "7", "4a"),
        ("7_2.jpg", "7", "4a"),
        ("7_3.jpg", "7", "4a"),
        ("10_1.jpg", "10", ""),
    ]
    first = square(0, 0, 2, 2) | square(4, 6, 2, 2) | square(2, 3, 2, 1)
    assert np.array_equal(target(cases[0]), first)
    assert np.array_equal(target(cases[1]), square(1, 2, 3, 3))
    assert cases[2].load_mask is None
    assert cases[3].load_mask is None


@pytest.mark.parametrize(
    ("xml", "says"),
    {
        "cut off": ("<case><number>7", "cannot be read as XML"),
        "entities": (
            ddti_xml((1, "&a;"), head='<!DOCTYPE case [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'),
            "declares no document type",
        ),
        "an outline cut off": (ddti_xml((1, '[{"points": [{"x": 1, "y": 2}, {"x"')), "a JSON list of points"),
        "not numbers": (ddti_xml((1, '[{"points": [{"x": "left", "y": 2}]}]')), "a JSON list of points"),
        "not a number": (ddti_xml((1, '[{"points": [{"x": NaN, "y": 2}]}]')), "a JSON list of points"),
        "far away": (ddti_xml((1, '[{"points": [{"x": 1e300, "y": 2}]}]')), "a JSON list of points"),
    }.values(),
)
def test_ddti_refuses_xml_that_is_damaged_or_means_harm_and_says_nothing_of_the_patient(
    xml: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says) as error:
        registry.cases("ddti", make_ddti(tmp_path, xml))
    assert "7.xml" in str(error.value)
    assert "61" not in str(error.value).replace(str(tmp_path), "")


def test_ddti_is_also_read_as_folders_of_images_and_masks(tmp_path: Path) -> None:
    save(tmp_path / "image/10.PNG")
    save(tmp_path / "mask/10.PNG", as_gray(square()))
    (case,) = registry.cases("ddti", tmp_path)
    assert np.array_equal(target(case), square())
    save(tmp_path / "image/11.PNG")
    with pytest.raises(DataError, match=r"1 of 2 have none: 11.PNG"):
        registry.cases("ddti", tmp_path)


# --- TN3K and BUS-BRA -------------------------------------------------------------------------------------------


def make_tn3k(root: Path) -> Path:
    for part, names in (("trainval", ("0000", "0001")), ("test", ("0000",))):
        for name in names:
            save(root / f"{part}-image/{name}.jpg", np.zeros((48, 64), np.uint8))
            drawn = np.zeros((48, 64), np.uint8)
            drawn[19:35, 13:50] = 255
            save(root / f"{part}-mask/{name}.jpg", drawn, quality=60)
    (root / "tn3k-trainval-fold3.json").write_text('{"train": [1], "val": [0]}')
    return root


def test_tn3k_masks_are_sharp_though_published_as_jpeg(tmp_path: Path) -> None:
    make_tn3k(tmp_path)
    cases = tn3k.cases(tmp_path)
    assert named(cases) == [("0000.jpg", "", "trainval"), ("0001.jpg", "", "trainval"), ("0000.jpg", "", "test")]
    with Image.open(tmp_path / "test-mask/0000.jpg") as published:
        assert len(np.unique(np.asarray(published))) > 2
    drawn = np.zeros((48, 64), np.bool_)
    drawn[19:35, 13:50] = True
    assert np.array_equal(target(cases[2]), drawn)


def test_tn3k_folds_name_train_and_val(tmp_path: Path) -> None:
    make_tn3k(tmp_path)
    assert [case.kind for case in tn3k.cases(tmp_path, fold=3)] == ["val", "train", "test"]
    with pytest.raises(DataError, match=r"tn3k-trainval-fold4.json: expected lists 'train' and 'val'"):
        tn3k.cases(tmp_path, fold=4)
    (tmp_path / "tn3k-trainval-fold3.json").write_text('{"train": [1], "val": []}')
    with pytest.raises(DataError, match=r"on one of its lists; 1 of 2 have none: 0000.jpg"):
        tn3k.cases(tmp_path, fold=3)


def test_bus_bra_takes_every_colour_as_lesion_and_groups_by_patient(tmp_path: Path) -> None:
    root = tmp_path / "BUSBRA"
    painted = np.zeros((6, 8, 3), np.uint8)
    painted[0, :3] = ((1, 0, 0), (0, 90, 0), (0, 0, 255))  # the luma of all of them is below 127
    for name in ("0001-l", "0001-r"):
        save(root / f"Images/bus_{name}.png")
        save(root / f"Masks/mask_{name}.png", painted)
    (root / "bus_data.csv").write_text(
        "ID,Case,Histology,Pathology,BIRADS\nbus_0001-l,1,fibroadenoma,benign,4\nbus_0001-r,1,carcinoma,malignant,5\n"
    )
    cases = bus_bra.cases(tmp_path)
    assert named(cases) == [("bus_0001-l.png", "1", "benign"), ("bus_0001-r.png", "1", "malignant")]
    assert np.argwhere(target(cases[0])).tolist() == [[0, 0], [0, 1], [0, 2]]
    (root / "Masks/mask_0001-r.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 have none: mask_0001-r.png"):
        bus_bra.cases(tmp_path)


# --- DICOM ------------------------------------------------------------------------------------------------------

PATIENT = "Doe^Jane"


def dicom_file(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", frames: int = 1) -> Path:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, "4711", "19010101"
    colours = 3 if pixels.shape[-1] == 3 else 1
    data.Rows, data.Columns = pixels.shape[-3:-1] if colours == 3 else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = colours, photometric
    if colours == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    if frames > 1:
        data.NumberOfFrames = str(frames)
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_gives_every_frame_of_every_file_and_nothing_of_the_patient(tmp_path: Path) -> None:
    frames = np.stack([GRAY, GRAY + 100, 255 - GRAY])
    dicom_file(tmp_path / "study/IM10", frames, frames=3)  # archives often leave out the ending
    dicom_file(tmp_path / "study/IM2.dcm", np.repeat(GRAY[..., None], 3, 2), "RGB")
    (tmp_path / "study/notes.txt").write_text("no picture")
    (tmp_path / "study/empty").touch()
    cases = dicom.cases(tmp_path)
    assert [case.source.removeprefix(f"{tmp_path}/study/") for case in cases] == [
        "IM2.dcm",
        "IM10#0",
        "IM10#1",
        "IM10#2",
    ]
    assert [case.group.removeprefix(f"{tmp_path}/study/") for case in cases] == ["IM2.dcm", "IM10", "IM10", "IM10"]
    assert np.array_equal(np.asarray(cases[0].load_image()), np.repeat(GRAY[..., None], 3, 2))
    for case, frame in zip(cases[1:], frames, strict=True):
        assert np.array_equal(np.asarray(case.load_image()), frame)
        assert not case.load_image().info


@pytest.mark.parametrize(
    ("pixels", "photometric", "first_and_last"),
    [
        (GRAY, "MONOCHROME1", (255, 255 - 47)),
        (GRAY.astype(np.uint16) * 100 + 1000, "MONOCHROME2", (0, 255)),
        (GRAY.astype(np.uint16) * 100 + 1000, "MONOCHROME1", (255, 0)),
    ],
)
def test_dicom_gray_is_brought_to_8_bits_with_black_at_0(
    pixels: np.ndarray, photometric: str, first_and_last: tuple[int, int], tmp_path: Path
) -> None:
    dicom_file(tmp_path / "a.dcm", pixels, photometric)
    (case,) = dicom.cases(tmp_path)
    shown = np.asarray(case.load_image())
    assert (shown.dtype, shown[0, 0], shown[-1, -1]) == (np.uint8, *first_and_last)


def test_dicom_loops_in_jpeg_and_palettes_come_out_as_colours(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (20, 160, 40)]
    coded = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(buffer, "JPEG", quality=95)
        coded.append(buffer.getvalue())
    loop = pydicom.dcmread(dicom_file(tmp_path / "loop", np.zeros((2, 16, 16, 3), np.uint8), "YBR_FULL_422", frames=2))
    loop.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    loop.PixelData = encapsulate(coded)
    loop.save_as(tmp_path / "loop")

    palette = pydicom.dcmread(dicom_file(tmp_path / "palette", GRAY, "PALETTE COLOR"))
    for channel, name in enumerate(("Red", "Green", "Blue")):
        palette.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
        palette.add_new(f"{name}PaletteColorLookupTableData", "OW", bytes([10 * channel]) * 256)
    palette.save_as(tmp_path / "palette")

    first, second, painted = (np.asarray(case.load_image()) for case in dicom.cases(tmp_path))
    for frame, colour in zip((first, second), colours, strict=True):
        assert frame.shape == (16, 16, 3)
        assert np.abs(frame.astype(int) - colour).max() <= 3
    assert (painted == (0, 10, 20)).all()


def spoil_frames(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.add_new("NumberOfFrames", "LO", PATIENT)
    data.save_as(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - GRAY.nbytes)


@pytest.mark.parametrize("damage", [spoil_frames, cut])
def test_damaged_dicom_is_refused_without_a_word_of_its_tags(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(dicom_file(tmp_path / "a.dcm", GRAY))
    with pytest.raises(DataError, match=r"a\.dcm.* cannot be read as DICOM \(\w+\)") as error:
        dicom.cases(tmp_path)[0].load_image()
    assert PATIENT not in str(error.value)
    assert error.value.__cause__ is None
