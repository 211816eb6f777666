"""Folders of image pairs: every layout there is a rule for, and what is said of the others."""

import numpy as np
import pytest
import torch
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.tests.support.image_folders import put
from concept_sliders.training.pairs.file_names import parse_marks, read_names
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.pairs.image_files import read_caption, read_image
from PIL import Image


def laid_out(folder, **options):
    """{scene: {strength: file}} as read."""
    pairs = read_pairs(folder, **options)
    return {one.name: dict(zip(one.strengths, one.files)) for one in pairs}


def test_two_folders_with_words(tmp_path):
    for word, age in (("less", 0.1), ("more", 0.9)):
        (tmp_path / word).mkdir()
        for index, person in enumerate(portraits(2, seed=3)):
            Image.fromarray(draw(person.with_(age=age))).save(tmp_path / word / f"{index}.png")
    pairs = read_pairs(tmp_path, side=128)
    assert [(one.name, one.strengths) for one in pairs] == [("0", (-1, 1)), ("1", (-1, 1))]
    for one, person in zip(pairs, portraits(2, seed=3)):
        for image, age in zip(one.images, (0.1, 0.9)):
            assert torch.equal((image * 255).round().byte(), torch.tensor(draw(person.with_(age=age))))


ENDS = [-1, 1]
LAYOUTS = {
    "words of any case": ("Before/x.png AFTER/x.png", {"x": ENDS}),
    "letters": ("A/x.png B/x.jpg", {"x": ENDS}),
    "words after a common name": ("eyes_small_off/x.png eyes_small_on/x.png", {"x": ENDS}),
    "strengths": ("-2/x.png -1/x.png 1/x.png 2/x.png", {"x": [-2, -1, 1, 2]}),
    "with a zero": ("-1/x.png 0/x.png +1/x.png", {"x": [-1, 0, 1]}),
    "above zero": ("0/x.png 0.5/x.png 1/x.png", {"x": [0, 0.5, 1]}),
    "strengths after a name": ("alpha_-3/x.png alpha_3/x.png", {"x": [-3, 3]}),
    "scenes with letters for names": ("less/a.png less/b.png more/a.png more/b.png", {"a": ENDS, "b": ENDS}),
    "flat, numbers": ("000123_-3.0.png 000123_3.0.png", {"000123": [-3, 3]}),
    "flat, signs": ("seed4_+2.png seed4_-2.png seed7_+2.png seed7_-2.png", {"seed4": [-2, 2], "seed7": [-2, 2]}),
    "flat, an edit": ("0001_edit_-1.5.jpg 0001_edit_1.5.jpg", {"0001_edit": [-1.5, 1.5]}),
    "flat, the image itself": ("0001.png 0001_-3.png 0001_3.png", {"0001": [-3, 0, 3]}),
    "flat, letters": ("x_a.png x_b.png", {"x": ENDS}),
    "flat, words": ("seed-less.png seed-more.png", {"seed": ENDS}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    names, expected = LAYOUTS[layout][0].split(), LAYOUTS[layout][1]
    put(tmp_path, *names)
    found = laid_out(tmp_path)
    assert {scene: list(files) for scene, files in found.items()} == expected
    assert sorted(file for files in found.values() for file in files.values()) == sorted(names)


def test_which_end_is_which(tmp_path):
    put(tmp_path, "with/x.png", "without/x.png")
    assert laid_out(tmp_path) == {"x": {-1.0: "without/x.png", 1.0: "with/x.png"}}


def test_the_user_says_the_strengths_of_other_names(tmp_path):
    put(tmp_path / "folders", "bigsize/000.png", "smallsize/000.png", "bigsize/001.png", "smallsize/001.png")
    marks = parse_marks("smallsize=-1, bigsize=2")
    assert laid_out(tmp_path / "folders", marks=marks)["000"] == {-1.0: "smallsize/000.png", 2.0: "bigsize/000.png"}
    put(tmp_path / "flat", "x_young face.png", "x_face.png")
    assert laid_out(tmp_path / "flat", marks=parse_marks("face=1, young face=-1")) == {
        "x": {-1.0: "x_young face.png", 1.0: "x_face.png"}
    }
    put(tmp_path / "counted", "0_000.png", "0_001.png", "0_002.png")
    counted = laid_out(tmp_path / "counted", marks=parse_marks("000=-1, 001=0, 002=1"))
    assert list(counted["0"]) == [-1.0, 0.0, 1.0]


def test_marks_from_text():
    assert parse_marks("") == {} and parse_marks("A b = -1.5,\nc=2") == {"a b": -1.5, "c": 2.0}
    for text in ("a", "a=", "=1", "a=x", "a=1, a=2", "a=1, b=1", "a=nan, b=1", "a=1"):
        with pytest.raises(ValueError, match="Strengths of names"):
            parse_marks(text)


def test_names_are_read_whole_or_not_at_all():
    assert read_names(["x_-1", "x_1", "y"], {}) is None
    assert read_names(["x_1", "x_2"], {}) is None  # counted: any two images
    assert read_names(["person-1", "person-2"], {}) is None


def test_files_that_are_none_of_ours_are_passed_over(tmp_path):
    put(tmp_path, "less/x.png", "more/x.png", "less/._x.png", ".thumbs/x.png", "__MACOSX/x.png")
    (tmp_path / "less" / "notes.md").write_text("-")
    (tmp_path / "empty").mkdir()
    assert list(laid_out(tmp_path)) == ["x"]


def test_captions_lie_beside_any_image_of_the_scene(tmp_path):
    put(tmp_path, "-1/a.png", "1/a.png", "-1/b.png", "1/b.png", "-1/c.png", "1/c.png")
    (tmp_path / "1" / "a.txt").write_text("\ufeffa photo\nof an eye\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("another", encoding="utf-8")
    (tmp_path / "-1" / "c.txt").write_text(" \n")
    assert [one.prompt for one in read_pairs(tmp_path, prompt="eye")] == ["a photo of an eye", "another", "eye"]


def test_captions_of_flat_folders(tmp_path):
    put(tmp_path, "a_-1.png", "a_1.png", "b_-1.png", "b_1.png")
    (tmp_path / "a.txt").write_text("by the scene")
    (tmp_path / "b_1.txt").write_text("by the image")
    assert [one.prompt for one in read_pairs(tmp_path)] == ["by the scene", "by the image"]


def test_captions_that_differ_are_refused(tmp_path):
    put(tmp_path, "a_-1.png", "a_1.png")
    (tmp_path / "a_1.txt").write_text("one")
    (tmp_path / "a_-1.txt").write_text("other")
    with pytest.raises(ValueError, match=r"a_-1.txt and .*a_1.txt differ"):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    "mask", ["mask/x.png", "masks/x.png", "masks/x_mask.png", "less/x_mask.png", "x_mask.png", "mask.png"]
)
def test_masks(tmp_path, mask):
    put(tmp_path, "less/x.png", "more/x.png")
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    (tmp_path / mask).parent.mkdir(exist_ok=True)
    Image.fromarray(half).save(tmp_path / mask)
    (one,) = read_pairs(tmp_path)
    assert one.mask[:, 32:].min() == pytest.approx(1) and one.mask[:, :32].max() == 0


def test_a_mask_of_one_scene_goes_before_that_of_all(tmp_path):
    put(tmp_path, "x_-1.png", "x_1.png", "y_-1.png", "y_1.png")
    for name, shade in (("mask.png", 255), ("y_mask.png", 128)):
        Image.new("L", (64, 64), shade).save(tmp_path / name)
    x, y = read_pairs(tmp_path)
    assert x.mask.min() == pytest.approx(1) and y.mask.max() == pytest.approx(128 / 255)


def test_images_of_any_kind_become_colours(tmp_path):
    def saved(image, name, **options):
        image.save(tmp_path / name, **options)
        return read_image(tmp_path / name)

    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert saved(clear, "clear.png").min() == 1  # on white
    assert saved(clear.convert("P"), "palette.png").shape == (8, 8, 3)
    half = saved(Image.new("LA", (8, 8), (0, 128)), "half.png")
    torch.testing.assert_close(half, torch.full((8, 8, 3), 127 / 255))
    deep = Image.fromarray(np.full((8, 8), 65535 // 2, np.uint16))
    torch.testing.assert_close(saved(deep, "deep.png"), torch.full((8, 8, 3), 0.5), rtol=0, atol=0.003)
    assert saved(Image.new("1", (8, 8), 1), "bits.bmp").min() == 1
    assert saved(Image.new("L", (8, 8), 51), "grey.png").unique() == pytest.approx(0.2)
    assert saved(Image.new("CMYK", (8, 8)), "press.jpg").min() > 0.98
    assert saved(Image.new("RGB", (8, 8), "white"), "lossless.WEBP", lossless=True).min() == 1


def test_the_cameras_orientation_is_kept(tmp_path):
    lying = Image.new("RGB", (80, 40))
    lying.paste((255, 255, 255), (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.shape == (80, 40, 3) and upright[:40].min() == 1 and upright[40:].max() == 0


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "avif", "tiff", "gif"])
def test_files_cut_short_are_named(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (0, 10, 60, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"Cannot read the image .*x\.{ending}"):
            read_image(path)


def test_a_caption_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"Cannot read the caption .*x\.txt"):
        read_caption(tmp_path / "x.txt")


WRONG = {
    "nothing": (["less/notes.md"], "holds no images"),
    "one image": (["x.png"], r"holds one image, x\.png"),
    "partners missing": (
        ["less/a.png", "less/b.png", "more/a.png", "more/c.png"],
        r"3 scenes .*strength -1 \(less/a\.png\) has 2 of them and lacks c; strength 1 \(more/a\.png\) .*lacks b",
    ),
    "a strength missing": (["a_-1.png", "a_0.png", "a_1.png", "b_-1.png", "b_1.png"], r"strength 0 .*lacks b"),
    "the same strength twice": (
        ["-1/x.png", "1/x.png", "+1/x.png"],
        r"1/x\.png and .*1/x\.png are both of strength 1",
    ),
    "the same strength twice, flat": (["x_-1.png", "x_-1.0.png", "x_1.png"], "both of strength -1"),
    "equal strengths": (["x_-1.png", "y_-1.png"], "all images are of strength -1; a pair takes two"),
    "the same name twice": (["less/x.png", "less/x.jpg", "more/x.png"], "stand for the same image"),
    "words nobody knows": (["young/x.png", "old/x.png"], r"from the subfolders old, young.*less/more.*smallsize=-1"),
    "words nobody knows, counted images": (
        ["smallsize/000.png", "smallsize/001.png", "bigsize/000.png", "bigsize/001.png"],
        "from the subfolders bigsize, smallsize",
    ),
    "names nobody knows": (["anna.png", "berta.png"], "from the images anna, berta"),
    "counted from one": (["photo_1.png", "photo_2.png"], "cannot tell strengths"),
    "counted from zero": (["000_000.jpg", "000_001.jpg"], "from the images 000_000, 000_001"),
    "an image and its edit": (["x.png", "x_edited.png"], "from the images x, x_edited"),
    "a folder a scene": (["seed1/-3.png", "seed1/3.png"], "from the subfolders seed1"),
    "a numbered folder a scene": (["1/-3.png", "1/3.png", "2/-3.png", "2/3.png"], "both the subfolders"),
    "a numbered folder a scene, words": (
        ["1/less.png", "1/more.png", "2/less.png", "2/more.png"],
        "both the subfolders",
    ),
    "strengths everywhere": (["-1/x_-1.png", "-1/x_1.png", "1/x_-1.png", "1/x_1.png"], "both the subfolders"),
    "images and folders": (["less/x.png", "more/x.png", "preview.png"], "must be one or the other"),
    "too deep": (["set/less/x.png", "set/more/x.png"], "holds no images"),
    "a mask of nothing": (["x_-1.png", "x_1.png", "y_mask.png"], r"mask .*y_mask\.png is of no image"),
    "two masks": (["x_-1.png", "x_1.png", "x_mask.png", "masks/x.png"], "stand for the same image"),
    "masks in both folders": (
        ["less/x.png", "more/x.png", "less/x_mask.png", "more/x_mask.png"],
        "both masks of 'x'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(tmp_path, case):
    names, says = WRONG[case]
    put(tmp_path, *(name for name in names if not name.endswith(".md")))
    for name in names:
        if name.endswith(".md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("-")
    with pytest.raises(ValueError, match=says):
        read_pairs(tmp_path)


def test_marks_that_fit_nothing_are_said(tmp_path):
    put(tmp_path, "x_small.png", "x_big.png")
    with pytest.raises(ValueError, match=r"x_big, x_small. None but low, high were asked for"):
        read_pairs(tmp_path, marks={"low": -1.0, "high": 1.0})


def test_sizes_that_differ_are_said_with_both_files(tmp_path):
    put(tmp_path, "less/x.png")
    put(tmp_path, "more/x.png", size=(80, 64))
    with pytest.raises(ValueError, match=r"less/x\.png is 64 x 64 pixels, more/x\.png is 80 x 64"):
        read_pairs(tmp_path)


def test_every_scene_has_a_size_of_its_own(tmp_path):
    put(tmp_path, "a_-1.png", "a_1.png", size=(300, 200))
    put(tmp_path, "b_-1.png", "b_1.png", size=(64, 128))
    assert [one.size for one in read_pairs(tmp_path, side=192)] == [(128, 192), (128, 64)]
