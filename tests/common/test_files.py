"""Files that are replaced completely or not at all."""

import os

import pytest

from sb3_attn.common.files import replace_on_success


def test_a_failed_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("old")

    def save_half() -> None:
        with replace_on_success(path, suffix="zip") as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.zip"]


def test_a_failed_first_save_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), replace_on_success(tmp_path / "new", suffix="zip"):
        raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_a_save_replaces_the_old_file_only_at_the_end(tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("old")
    with replace_on_success(path, suffix="zip") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix and temporary.parent == path.parent
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.zip"]


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [("model", "zip", "model.zip"), ("model.zip", "zip", "model.zip"), ("model.pkl", "zip", "model.pkl"), ("raw", "", "raw")],
)
def test_the_suffix_is_added_where_there_is_none(tmp_path, name, suffix, expected):
    with replace_on_success(str(tmp_path / "new" / "folder" / name), suffix) as temporary:
        temporary.write_bytes(b"content")
    assert (tmp_path / "new" / "folder" / expected).read_bytes() == b"content"


def test_a_save_through_a_link_changes_the_file_behind_it(tmp_path):
    real, link = tmp_path / "real.zip", tmp_path / "link.zip"
    real.write_text("old")
    link.symlink_to(real)
    with replace_on_success(link, "zip") as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
