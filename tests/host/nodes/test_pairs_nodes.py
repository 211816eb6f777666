"""The nodes for image pairs: what they put out, and what they say of folders that do not fit."""

import folder_paths
import pytest
import torch
from concept_sliders.nodes.image_strip import contact_sheet
from concept_sliders.nodes.pairs import ImagePairsFromFolder, ImagePairsNode
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.tests.support.reports import warned
from concept_sliders.training.pairs.image_sets import ImagePairs, ImageSet
from PIL import Image

PEOPLE = portraits(3, seed=11)


@pytest.fixture
def input_folder(tmp_path, monkeypatch):
    """An input folder with drawn pairs in `smiles`, and a temporary folder for previews."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    for word, smile in (("less", 0.0), ("more", 1.0)):
        (tmp_path / "input" / "smiles" / word).mkdir(parents=True)
        for index, person in enumerate(PEOPLE):
            image = Image.fromarray(draw(person.with_(smile=smile)))
            image.save(tmp_path / "input" / "smiles" / word / f"{index}.png")
    return tmp_path / "input"


def batch(smile):
    return torch.stack([torch.tensor(draw(person.with_(smile=smile))) for person in PEOPLE]).float() / 255


def test_a_folder_and_two_batches_are_the_same_pairs(input_folder):
    with torch.inference_mode():
        from_folder, sheet = ImagePairsFromFolder.execute("smiles", " a face ", 64).result
        from_batches, same_sheet = ImagePairsNode.execute(batch(0.0), batch(1.0), "a face", 64).result
    assert len(from_folder) == len(from_batches) == 3
    for one, other in zip(from_folder, from_batches):
        assert one.strengths == other.strengths == (-1.0, 1.0) and one.prompt == other.prompt == "a face"
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images))
    assert sheet.ndim == 4 and torch.equal(sheet, same_sheet)


def test_the_sheet_has_a_row_a_set_and_a_column_a_strength():
    def one(height, width, *strengths, mask=None):
        return ImageSet(tuple(torch.rand(height, width, 3) for _ in strengths), strengths, mask=mask)

    mask = torch.zeros(64, 128)
    mask[:, 64:] = 1
    sets = (one(64, 64, -1.0, 1.0), one(64, 128, -2.0, 0.0, 1.0, mask=mask))
    sheet = contact_sheet(ImagePairs(sets))
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert sheet.shape[2] > 4 * 160 and sheet.shape[1] > 2 * 160 and 0 <= sheet.min() <= sheet.max() <= 1
    many = contact_sheet(ImagePairs(sets[:1] * 100))
    assert many.shape[1] < 30 * 170


def test_pairs_of_several_sizes_are_put_one_after_the_other(input_folder):
    first = ImagePairsNode.execute(batch(0.0), batch(1.0), "", 64).result[0]
    mask = torch.ones(1, 96, 200)
    pairs = ImagePairsNode.execute(torch.rand(1, 96, 200, 3), torch.rand(1, 96, 200, 3), "", 128, 64, mask, first)
    assert [one.size for one in pairs.result[0]] == [(64, 64)] * 3 + [(64, 128)]


def test_files_that_are_not_read_are_named_on_the_node(input_folder):
    assert warned(ImagePairsFromFolder.execute("smiles", "", 64)) == []
    (input_folder / "smiles" / "more" / "0.png").rename(input_folder / "smiles" / "more" / "0.tiff")
    Image.open(input_folder / "smiles" / "less" / "0.png").save(input_folder / "smiles" / "less" / "0.gif")
    (input_folder / "smiles" / "less" / "0.png").rename(input_folder / "smiles" / "less" / "0.heic")
    out = ImagePairsFromFolder.execute("smiles", "", 64)
    assert len(out.result[0]) == 3 and out.ui["images"]
    (line,) = warned(out)
    assert line == "left out, since they are no images that can be read here: less/0.heic"


def test_strengths_of_names_and_the_strongest(input_folder):
    for old, new in (("less", "smallsize"), ("more", "bigsize")):
        (input_folder / "smiles" / old).rename(input_folder / "smiles" / new)
    with pytest.raises(ValueError, match="cannot tell strengths from the subfolders bigsize, smallsize"):
        ImagePairsFromFolder.execute("smiles", "", 64)
    pairs = ImagePairsFromFolder.execute("smiles", "", 64, 64, "smallsize=-10, bigsize=20", 2.0).result[0]
    assert pairs.strengths == (-1.0, 2.0)


def test_the_folder_is_looked_at_again_when_a_file_changes(input_folder):
    before = ImagePairsFromFolder.fingerprint_inputs(folder="smiles", size=64)
    assert before == ImagePairsFromFolder.fingerprint_inputs(folder="smiles", size=64)
    (input_folder / "smiles" / "0.txt").write_text("a caption")
    assert before != ImagePairsFromFolder.fingerprint_inputs(folder="smiles", size=64)


def test_comfyui_takes_the_schemas():
    for node in (ImagePairsNode, ImagePairsFromFolder):
        assert node.INPUT_TYPES()["required"] and node.RETURN_TYPES == ["SLIDER_PAIRS", "IMAGE"]


def test_the_combo_shows_the_folders_that_are_there(input_folder):
    def shown():
        return next(i for i in ImagePairsFromFolder.define_schema().inputs if i.id == "folder").options

    assert shown() == ["smiles", "smiles/less", "smiles/more", "pocket_shirt"]
    (input_folder / "new").mkdir()
    Image.new("RGB", (64, 64)).save(input_folder / "new" / "x.png")
    assert shown()[0] == "new"


def test_the_folders_shown_behind_links_are_those_taken(input_folder):
    (input_folder / "smiles").rename(input_folder.parent / "disk")
    (input_folder / "linked").symlink_to(input_folder.parent / "disk")
    options = next(i for i in ImagePairsFromFolder.define_schema().inputs if i.id == "folder").options
    assert options == ["linked", "linked/less", "linked/more", "pocket_shirt"]
    assert len(ImagePairsFromFolder.execute("linked", "", 64).result[0]) == 3
    before = ImagePairsFromFolder.fingerprint_inputs(folder="linked", size=64)
    (input_folder.parent / "disk" / "less" / "0.txt").write_text("a caption")
    assert before != ImagePairsFromFolder.fingerprint_inputs(folder="linked", size=64)


def test_folders_that_are_not_there_or_outside_are_refused(input_folder):
    with pytest.raises(FileNotFoundError, match=r"no folder 'frowns' in .*; there is smiles"):
        ImagePairsFromFolder.execute("frowns", "", 64)
    with pytest.raises(ValueError, match="leads out of"):
        ImagePairsFromFolder.execute("../temp", "", 64)


def test_the_pairs_of_the_pack_are_there_unless_the_user_has_a_folder_of_that_name(input_folder):
    shipped = ImagePairsFromFolder.execute("pocket_shirt", "", 64).result[0]
    assert len(shipped) == 6 and {one.prompt for one in shipped} == {"portrait of a person, flat colour"}
    assert ImagePairsFromFolder.fingerprint_inputs(folder="pocket_shirt", size=64)
    (input_folder / "smiles").rename(input_folder / "pocket_shirt")
    assert len(ImagePairsFromFolder.execute("pocket_shirt", "", 64).result[0]) == 3
