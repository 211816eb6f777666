"""Which folders there are to choose from, and when what lies in one has changed."""

import os

import pytest
from concept_sliders.tests.unit.test_pair_folders import put
from concept_sliders.training.pair_folders import find_folder, fingerprint, picture_folders


@pytest.mark.parametrize("name", ["..", "../outside", "a/../../b", "/etc", "..\\outside", "a\0b"])
def test_a_folder_outside_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of"):
        find_folder(tmp_path, name)


def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "input" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads out of"):
        find_folder(tmp_path / "input", "link")


def test_a_missing_folder_is_told_with_what_there_is(tmp_path):
    put(tmp_path, "eyes/less/x.png", "eyes/more/x.png", "hair/x.png", "loose.png", ".hidden/x.png")
    assert picture_folders(tmp_path) == ["eyes", "eyes/less", "eyes/more", "hair"]
    with pytest.raises(FileNotFoundError, match="no folder 'nose' in .*; there is eyes, eyes/less, eyes/more, hair"):
        find_folder(tmp_path, "nose")
    assert find_folder(tmp_path, "eyes/less") == tmp_path / "eyes" / "less"


def test_the_fingerprint_changes_with_the_files(tmp_path):
    put(tmp_path, "less/x.png", "more/x.png")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    os.utime(tmp_path / "less" / "x.png", ns=(1, 1))
    touched = fingerprint(tmp_path)
    (tmp_path / "less" / "x.txt").write_text("a caption")
    assert len({before, touched, fingerprint(tmp_path)}) == 3
