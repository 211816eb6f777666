"""Which folders there are to choose from, and when what lies in one has changed."""

import os

import pytest
from concept_sliders.tests.support.image_folders import put
from concept_sliders.training.pairs.folder_list import LINKED, find_folder, fingerprint, image_folders
from concept_sliders.training.pairs.folders import read_pairs


@pytest.mark.parametrize("name", ["..", "../outside", "a/../../b", "a/../a", "/etc", "..\\outside", "a\\b", "a\0b"])
def test_a_folder_outside_is_refused(tmp_path, name):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="leads out of"):
        find_folder(tmp_path, name)


def test_a_link_is_followed_wherever_it_leads(tmp_path):
    """It is the user who has put it there, for images on another disk; a name in a workflow cannot make one."""
    put(tmp_path, "disk/eyes/less/x.png", "disk/eyes/more/x.png", "elsewhere/x.png")
    root = tmp_path / "input"
    (root / "mine").mkdir(parents=True)
    (root / "eyes").symlink_to(tmp_path / "disk" / "eyes")
    (root / "mine" / "less").symlink_to(tmp_path / "disk" / "eyes" / "less")
    (root / "mine" / "more").symlink_to(tmp_path / "disk" / "eyes" / "more")
    (root / "gone").symlink_to(tmp_path / "disk" / "nothing")
    (root / "itself").symlink_to(root / "itself")
    assert image_folders(root) == ["eyes", "eyes/less", "eyes/more", "mine", "mine/less", "mine/more"]
    for name in image_folders(root):
        assert find_folder(root, name) == root / name
    for name in ("eyes", "mine"):
        assert len(read_pairs(find_folder(root, name))) == 1
    for name in ("eyes/../../elsewhere", str(tmp_path / "elsewhere")):
        with pytest.raises(ValueError, match="leads out of"):
            find_folder(root, name)


def test_links_that_lead_back_end(tmp_path):
    put(tmp_path, "input/eyes/less/x.png", "input/eyes/more/x.png")
    root = tmp_path / "input"
    (root / "all").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "eyes" / "again").symlink_to(root / "eyes")
    (root / "same").symlink_to(root / "eyes" / "less")
    assert image_folders(root) == ["eyes", "eyes/less", "eyes/more", "same"]


def test_a_link_to_a_whole_disk_is_not_searched_to_its_end(tmp_path):
    deep = "/".join("abcdef")
    put(tmp_path, "disk/x.png", f"disk/{deep}/x.png", f"input/own/{deep}/x.png", "disk/a/b/c/x.png")
    root = tmp_path / "input"
    (root / "disk").symlink_to(tmp_path / "disk")
    assert LINKED == 3
    linked = ["disk", "disk/a/b", "disk/a/b/c"]
    assert image_folders(root) == [*linked, "own/a/b/c/d/e", f"own/{deep}"]
    assert find_folder(root, f"disk/{deep}").is_dir()


def test_what_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    """A folder, and what lies in one: by whom it was made this test may not know."""
    put(tmp_path, "eyes/x.png", "locked/x.png", "hair/x.png")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    scandir = os.scandir

    def refused(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert image_folders(tmp_path) == ["eyes", "hair"]
    assert fingerprint(tmp_path) == fingerprint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork") or os.getuid() != 0, reason="needs to become another user")
def test_a_folder_of_which_only_the_names_may_be_read(tmp_path):
    put(tmp_path, "eyes/x.png", "locked/inner/x.png")
    (tmp_path / "locked").chmod(0o744)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            found = image_folders(tmp_path), len(fingerprint(tmp_path))
            os._exit(0 if found == (["eyes"], 64) else 1)
        except OSError:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_missing_folder_is_told_with_what_there_is(tmp_path):
    put(tmp_path, "eyes/less/x.png", "eyes/more/x.png", "hair/x.png", "loose.png", ".hidden/x.png")
    assert image_folders(tmp_path) == ["eyes", "eyes/less", "eyes/more", "hair"]
    with pytest.raises(FileNotFoundError, match=r"no folder 'nose' in .*; there is eyes, eyes/less, eyes/more, hair"):
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


def test_the_fingerprint_changes_with_the_files_behind_links(tmp_path):
    put(tmp_path, "disk/less/x.png", "disk/more/x.png")
    (tmp_path / "eyes").mkdir()
    for word in ("less", "more"):
        (tmp_path / "eyes" / word).symlink_to(tmp_path / "disk" / word)
    (tmp_path / "linked").symlink_to(tmp_path / "eyes")
    before = [fingerprint(tmp_path / name) for name in ("eyes", "linked")]
    os.utime(tmp_path / "disk" / "less" / "x.png", ns=(1, 1))
    assert all(fingerprint(tmp_path / name) != was for name, was in zip(("eyes", "linked"), before))
