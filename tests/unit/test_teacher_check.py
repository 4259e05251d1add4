"""What `consilium-site check` tells of a teacher: each mistake by its name, and one temperature."""

import json
import logging
import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.clients import check, cli
from consilium.clients.settings import SiteHome, SiteSettings, load_site
from consilium.clients.site import open_site
from consilium.clients.teachers import card, faults, fitted
from consilium.clients.teachers.settings import ForeignSettings
from consilium.common import metrics, temperature
from consilium.common.datasets import labelled
from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.evaluation import calibration
from consilium.common.settings import parse
from consilium.common.soft_mask import quantise
from consilium.common.validation import from_card

SIZE = 48
COUNT = 24
CODE = """
import numpy as np

def soft(images):
    '''A good teacher: targets are brighter than 128, and the more so the surer it is. 0.02 to 0.98.'''
    return 0.02 + 0.96 / (1 + np.exp(-(images[:, :1].astype(float) - 128) / 12))

def logits(images):
    p = soft(images)
    return np.log(p / (1 - p))

def scores(images):
    return np.concatenate([-logits(images), logits(images)], 1)

def overconfident(images):
    '''True probabilities of 0.8 and 0.01, their logits made three times as large. The truth is the image's lowest bit.'''
    rng = np.random.default_rng(int(images.sum()))
    real = images[:, :1] & 1
    part = 20 * 128 / (24 * 48 * 48)  # of all pixels that is target
    sure = (part - 0.01) / 0.79  # part that is given 0.8: sure * 0.8 + (1 - sure) * 0.01 = part
    is_sure = rng.random(real.shape) < np.where(real, 0.8 * sure / part, 0.2 * sure / (1 - part))
    p = np.where(is_sure, 0.8, 0.01)
    return 3 * np.log(p / (1 - p))

def moved(images):
    return np.roll(soft(images), (6, -9), (2, 3))

def transposed(images):
    return soft(images).swapaxes(2, 3)

def upside_down(images):
    return soft(images)[:, :, ::-1]

def inverted(images):
    return 1 - soft(images)

def two(images):
    return np.concatenate([1 - soft(images), soft(images)], 1)

def constant(images):
    return np.full((len(images), 1, *images.shape[2:]), 0.3)

def blind(images):
    return soft(np.stack([np.tril(np.full(images.shape[1:], 255, np.uint8))] * len(images)))

def levels(images):
    return (255 * soft(images)).round()

def labels(images):
    return (soft(images) > 0.5) * 2

def noise(images):
    return np.random.default_rng(int(images.sum())).random((len(images), 1, *images.shape[2:])) * 0.5

def nothing(images):
    return None
"""


def make_site(folder: Path, function: str, output: str = "probabilities", **teacher: Any) -> Path:
    """A site with 24 test images of bright rectangles, each elsewhere; every sixth shows none."""
    (folder / "teachers_of_the_site.py").write_text(CODE)
    path = folder / "site.toml"
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in teacher.items())
    path.write_text(
        f"""# the site of the north
name = "north"

[teacher]
kind = "callable"  # ours
function = "teachers_of_the_site:{function}"
code = "."
output = "{output}"
{more}
[training]
device = "cpu"
threads = 1
"""
    )
    rng = np.random.default_rng(3)
    images = rng.integers(40, 90, (COUNT, 1, SIZE, SIZE)).astype(np.uint8)
    masks = np.zeros_like(images)
    for i in range(COUNT):
        top, left = rng.integers(2, 22, 2)
        if i % 6:
            masks[i, 0, top : top + 8, left : left + 16] = 1
    images[masks > 0] += 100
    images = (images & 254) | masks  # the truth is the lowest bit
    names = tuple(f"/srv/patients/{i}.png" for i in range(COUNT))
    labelled.pack(folder / "data" / "train", labelled.Labelled(images[:2], masks[:2], names[:2], ("", "")))
    labelled.pack(folder / "data" / "test", labelled.Labelled(images, masks, names, ("",) * COUNT))
    return path


def checked(folder: Path, function: str, output: str = "probabilities", **teacher: Any) -> check.Checked:
    return check.check_teacher(load_site(make_site(folder, function, output, **teacher)))


def test_a_good_teacher_has_no_finding_and_its_numbers_are_right(tmp_path: Path) -> None:
    """Bright pixels are 140 to 189, dark ones 40 to 89: at 128 they part without a mistake."""
    found = checked(tmp_path, "soft")
    assert found.findings == ()
    assert found.dice is not None
    assert found.iou is not None
    assert (found.images, found.dice.mean, found.dice.std, found.iou.mean) == (COUNT, 100, 0, 100)
    assert (found.empty, found.alarms, found.shown, found.misses) == (4, 0, 20, 0)


def test_the_masks_of_a_check_are_those_of_a_study(tmp_path: Path) -> None:
    home = load_site(make_site(tmp_path, "moved", temperature=2.0))
    found = check.check_teacher(home)
    data = labelled.open_packed(home.test_set)
    from consilium.clients.teachers.opening import open_teacher

    masks = quantise(open_teacher(home).predict(np.asarray(data.images)))
    assert found.dice == metrics.score(metrics.dice(masks, data.masks))


FINDINGS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "logits taken for probabilities": ("logits", "probabilities", {}, "logits-as-probabilities", 'output = "logits"'),
    "scores taken for probabilities": (
        "scores",
        "probabilities",
        {"output-channels": [1]},
        "logits-as-probabilities",
        'output = "softmax-logits"',
    ),
    "probabilities taken for logits": ("soft", "logits", {}, "probabilities-as-logits", 'output = "probabilities"'),
    "probabilities put through softmax": (
        "two",
        "softmax-logits",
        {"output-channels": [1]},
        "probabilities-as-logits",
        'output = "probabilities"',
    ),
    "gray levels": ("levels", "probabilities", {}, "not-probabilities", "divide them by 255"),
    "numbers of classes": ("labels", "binary", {}, "not-probabilities", 'output = "classes"'),
    "soft masks said to be binary": ("soft", "binary", {}, "not-binary", 'output = "probabilities"'),
    "soft masks said to be classes": ("soft", "classes", {}, "not-classes", "output"),
    "rows and columns exchanged": ("transposed", "probabilities", {}, "orientation", '"transposed"'),
    "upside down": ("upside_down", "probabilities", {}, "orientation", '"flipped-up-down"'),
    "turned once too often": (
        "soft",
        "probabilities",
        {"output-orientation": "turned-90"},
        "orientation",
        'output-orientation = "upright"',
    ),
    "moved": ("moved", "probabilities", {}, "shifted", "teacher.size"),
    "background": ("inverted", "probabilities", {}, "inverted", "output-inverted = true"),
    "background, by settings": ("soft", "probabilities", {"output-inverted": True}, "inverted", "inverted = false"),
    "another channel": ("two", "probabilities", {"output-channels": [0]}, "channel", "output-channels = [1]"),
    "another class": ("labels", "classes", {}, "channel", "output-channels = [2]"),
    "always the same value": ("constant", "probabilities", {}, "constant", "does not see"),
    "always the same mask": ("blind", "probabilities", {}, "constant", "does not see"),
    "nothing right": ("noise", "probabilities", {}, "hopeless", "picture"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_mistake_is_found_and_its_remedy_named(name: str, tmp_path: Path) -> None:
    function, output, settings, wanted, remedy = FINDINGS[name]
    (finding,) = checked(tmp_path, function, output, **settings).findings
    assert finding.name == wanted
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "name", [name for name in FINDINGS if FINDINGS[name][3] in ("orientation", "inverted", "channel")]
)
def test_doing_what_a_finding_says_mends_it(name: str, tmp_path: Path) -> None:
    function, output, settings, _, _ = FINDINGS[name]
    (finding,) = checked(tmp_path, function, output, **settings).findings
    key, _, value = finding.remedy.removeprefix("teacher.").partition(" = ")
    assert checked(tmp_path, function, output, **settings | {key: json.loads(value)}).findings == ()


def test_another_normalisation_that_fits_is_named(tmp_path: Path) -> None:
    """A network that parts at 128 is given pixels in [0, 1]: it sees nothing bright."""
    make_site(tmp_path, "soft")
    (tmp_path / "raw_of_the_site.py").write_text(
        "import torch\nclass Raw(torch.nn.Module):\n    def forward(self, images):\n        return images / 12 - 128 / 12\n"
    )
    teacher = {"kind": "module", "factory": "raw_of_the_site:Raw", "code": ".", "size": "native", "output": "logits"}
    values = {"name": "north", "teacher": teacher, "training": {"device": "cpu", "threads": 1}}
    home = SiteHome(parse(SiteSettings, values, "test"), tmp_path)
    (finding,) = check.check_teacher(home).findings
    assert (finding.name, finding.remedy) == ("normalisation", 'teacher.normalisation = "raw"')


def test_an_answer_without_any_form_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answers 1 image with numbers of the form"):
        checked(tmp_path, "nothing")


def test_a_site_without_test_images_is_told_what_to_do(tmp_path: Path) -> None:
    home = load_site(make_site(tmp_path, "soft"))
    (home.test_set / "index.csv").unlink()
    with pytest.raises(StateError, match=r"name the labelled images in data\.folder"):
        check.check_teacher(home)


def test_small_differences_and_large_targets_are_no_findings() -> None:
    """A target over four fifths of the image: an empty mask fits worse than its inverse, but so does any mask at all."""
    truth = np.zeros((5, 1, 20, 20), np.uint8)
    truth[..., :16] = 1
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(20, 2).repeat(20, 3)
    masks = np.zeros_like(truth)
    masks[range(5), :, 0, range(5)] = 255
    assert faults.in_masks(masks, truth, None, images, ["x"], None) == []
    symmetric = np.zeros_like(truth)
    symmetric[..., 5:15, 5:15] = 1
    assert faults.in_masks(symmetric * np.uint8(255), symmetric, None, images, ["x"], None) == []


def test_labels_in_another_order_are_put_right_at_once() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 2, 32, 32), np.uint8)
    for one in truth.reshape(12, 32, 32):
        top, left = rng.integers(0, 24, 2)
        one[top : top + 6, left : left + 8] = 1
    images = rng.integers(0, 256, (6, 1, 32, 32), np.uint8)
    told = {"output": "probabilities", "output-channels": [0, 1]}
    settings = ForeignSettings.model_validate(told)
    found = faults.in_masks(
        truth[:, ::-1] * np.uint8(255), truth, truth[:, ::-1] * np.uint8(255), images, ["a", "b"], settings
    )
    assert [(one.name, one.remedy) for one in found] == [("channel", "teacher.output-channels = [1, 0]")] * 2


@given(st.integers(1, 3), st.booleans())
def test_orientations_are_those_of_numpy(turns: int, flipped: bool) -> None:
    mask = np.arange(12).reshape(3, 4)
    names = {1: "turned-90", 2: "turned-180", 3: "turned-270"}
    np.testing.assert_array_equal(fitted.upright(np.rot90(mask, turns), names[turns]), mask)
    flip = np.flipud(mask) if flipped else np.fliplr(mask)
    np.testing.assert_array_equal(fitted.upright(flip, "flipped-up-down" if flipped else "flipped-left-right"), mask)
    np.testing.assert_array_equal(fitted.upright(mask.T, "transposed"), mask)
    np.testing.assert_array_equal(fitted.upright(np.rot90(mask, 2).T, "anti-transposed"), mask)


def test_temperature_two_halves_a_logit() -> None:
    """0.8 has the logit log 4; half of it is log 2, which is 2 / 3."""
    values = np.array([0.8, 0.2, 0.5, 0.0, 1.0], np.float32)
    found = temperature.temper(values, 2.0, temperature.LEVELS_CLIP)
    edge = 1 / (1 + math.sqrt(509))  # of 1/510: the odds 1 to 509, to the power of one half
    np.testing.assert_allclose(found, [2 / 3, 1 / 3, 0.5, edge, 1 - edge], rtol=1e-6)
    assert temperature.temper(values, 1.0, 0.1) is values


@given(st.floats(0.25, 8), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_a_temperature_keeps_order_and_target_pixels(value: float, given_values: list[float]) -> None:
    levels = np.sort(np.array(given_values, np.float32))
    found = temperature.temper(levels, value, temperature.LEVELS_CLIP)
    assert (np.diff(found) >= 0).all()
    clear = np.abs(levels - 0.5) > 0.01
    np.testing.assert_array_equal((found > 0.5)[clear], (levels > 0.5)[clear])


def test_the_fitted_temperature_is_the_one_that_sharpened() -> None:
    """Of pixels given 0.8 eight in ten are target: these logits are true; three times as large they need temperature 3."""
    truth = np.array([1] * 8 + [0] * 2 + [0] * 8 + [1] * 2, bool)
    true_logits = np.array([1] * 10 + [-1] * 10) * math.log(4)
    for factor, wanted in ((1, 1), (3, 3), (0.5, 0.5), (0.1, 0.25), (9, 8)):
        probabilities = fitted.sigmoid(factor * true_logits)
        counts = temperature.count(probabilities, truth, temperature.LOGITS_CLIP)
        assert temperature.fit(counts) == pytest.approx(wanted, rel=2e-3), factor
    assert calibration.ece(temperature.levels(counts, 9)) == pytest.approx(0, abs=0.003)
    assert temperature.fit(temperature.count(probabilities, np.ones(20, bool), 1e-6)) == 1.0  # nothing to learn from


def test_an_overconfident_teacher_is_told_its_temperature(tmp_path: Path) -> None:
    """The odds of 0.8 to the power of three are 64, those of 0.01 next to none."""
    found = checked(tmp_path, "overconfident", "logits").calibrated
    assert found is not None
    sure = (20 * 128 / (COUNT * SIZE**2) - 0.01) / 0.79
    assert found.best == pytest.approx(3, rel=0.03)
    assert found.ece == pytest.approx(sure * (64 / 65 - 0.8) + (1 - sure) * 0.01, rel=0.1)
    assert found.ece_best < 0.2 * found.ece
    assert found.advised
    again = checked(tmp_path, "overconfident", "logits", temperature=3.0).calibrated
    assert again is not None
    assert (again.best, again.advised) == (found.best, False)
    assert again.ece < 0.2 * found.ece


def test_card_and_picture_are_private_and_name_no_image(tmp_path: Path) -> None:
    home = load_site(make_site(tmp_path, "soft"))
    check.check_teacher(home)
    assert stat.S_IMODE(home.checks.stat().st_mode) == 0o700
    assert sorted(path.name for path in home.checks.iterdir()) == ["card.json", "masks.png"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.checks.iterdir()} == {0o600}
    text = (home.checks / "card.json").read_text()
    assert "/" not in text
    kept = json.loads(text)
    assert (kept["kind"], kept["images"], kept["dice-mean"], kept["findings"]) == ("callable", COUNT, 100.0, [])
    assert kept["calibration"]["best-temperature"] < 1  # it is always right, and says 0.02 to 0.98
    with Image.open(home.checks / "masks.png") as sheet:
        assert sheet.width > 1000


def test_the_coordinator_is_told_of_a_check_of_this_very_teacher_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_site(tmp_path, "soft")
    assert card.summary(load_site(path)) == {}
    check.check_teacher(load_site(path))
    told = card.summary(load_site(path))
    assert told["checked"] == {"images": COUNT, "dice-mean": 100.0, "dice-std": 0.0, "temperature": 1.0}
    found = from_card(told)
    assert found is not None
    assert (found.dice, found.n, found.misses, found.false_alarms) == (100.0, COUNT, 0, 0)
    site = open_site(load_site(path))
    assert site._card == {**site._teacher.card, **told}
    check.write_temperature(path, 1.5)
    assert card.summary(load_site(path))["checked"]["temperature"] == 1.5
    with caplog.at_level(logging.WARNING):
        path.write_text(path.read_text().replace(":soft", ":moved"))
        assert card.summary(load_site(path)) == {}
        assert "changed after its last check" in caplog.text
        check.check_teacher(load_site(path))
        assert card.summary(load_site(path)) == {}
        assert "(shifted)" in caplog.text


def test_a_temperature_is_written_without_touching_anything_else(tmp_path: Path) -> None:
    path = make_site(tmp_path, "soft")
    before = path.read_text()
    for value in (1.25, 0.5):
        check.write_temperature(path, value)
        assert load_site(path).settings.teacher.temperature == value
        assert path.read_text().replace(f"\ntemperature = {value:g}", "") == before
    (tmp_path / "bare.toml").write_text('name = "north"')
    check.write_temperature(tmp_path / "bare.toml", 2.0)
    assert load_site(tmp_path / "bare.toml").settings.teacher.temperature == 2.0
    inline = 'name = "north"\nteacher = { kind = "callable", function = "a:b", output = "logits" }\n'
    (tmp_path / "inline.toml").write_text(inline)
    with pytest.raises(SettingsError, match="write 'temperature = 2' into the table"):
        check.write_temperature(tmp_path / "inline.toml", 2.0)
    assert (tmp_path / "inline.toml").read_text() == inline


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    return int(end.value.code or 0)


def test_the_command_tells_its_findings_and_writes_a_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_site(tmp_path, "moved")
    assert run("check", path) == 2
    told = capsys.readouterr().err
    assert "WRONG (shifted): label lesion: Dice is" in told
    assert "to mend it: the model crops or pads" in told
    path = make_site(tmp_path, "overconfident", "logits")
    assert run("check", path, "--write-temperature") == 0
    assert "targets are not touched" in capsys.readouterr().out
    assert load_site(path).settings.teacher.temperature == pytest.approx(3, rel=0.03)
    assert run("check", path) == 0
    assert "; it is set" in capsys.readouterr().out


def test_a_teacher_that_comes_trained_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_site(tmp_path, "soft")
    assert run("train", path) == 2
    assert 'kind "callable" comes trained' in capsys.readouterr().err
    assert run("describe", path) == 0
    assert "callable, native size" in capsys.readouterr().out
