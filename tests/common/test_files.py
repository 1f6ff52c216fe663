"""Files that are replaced completely or not at all."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sb3_attn.common import files
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


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "model.zip"
    path.write_text("old")
    path.chmod(mode)
    with replace_on_success(path, "zip") as temporary:
        assert temporary.stat().st_mode & 0o777 == mode  # nobody else can read it before it is complete either
        temporary.write_text("new")
    assert path.stat().st_mode & 0o777 == mode


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "other").write_text("")
    with replace_on_success(tmp_path / "model.zip", "zip") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "model.zip").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_under_the_name_of_the_temporary_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / "model.zip.guessed.partial").symlink_to(victim)
    with pytest.raises(FileExistsError), replace_on_success(tmp_path / "model.zip", "zip") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "precious"


def test_file_and_folder_are_on_the_disk_before_and_after_the_file_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    with replace_on_success(tmp_path / "model.zip", "zip") as temporary:
        temporary.write_text("new")
    assert events == [str(temporary), "replace", str(tmp_path)]


def test_temporaries_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    path = tmp_path / "model.zip"
    program = (
        "import sys, time; from sb3_attn.common.files import replace_on_success\n"
        "with replace_on_success(sys.argv[1], 'zip') as temporary:\n"
        "    temporary.write_text('half'); print(flush=True); time.sleep(60)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        writer.stdout.readline()
    assert len(list(tmp_path.glob("*.partial"))) == 2
    writers[0].send_signal(signal.SIGKILL)
    writers[0].communicate()
    with replace_on_success(path, "zip") as temporary:
        temporary.write_text("new")
        assert len(list(tmp_path.glob("*.partial"))) == 2  # this one and the living writer's
    writers[1].kill()
    writers[1].communicate()
    with replace_on_success(path, "zip") as temporary:
        temporary.write_text("newer")
    assert os.listdir(tmp_path) == ["model.zip"] and path.read_text() == "newer"


def test_threads_can_write_the_same_file(tmp_path):
    contents = [str(i) * 1000 for i in range(8)]
    path, errors = tmp_path / "model.zip", []

    def write(content: str) -> None:
        try:
            for _ in range(5):
                with replace_on_success(path, "zip") as temporary:
                    temporary.write_text(content)
                assert path.read_text() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["model.zip"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_named_with_its_free_space(tmp_path, number):
    path: Path = tmp_path / "model.zip"
    path.write_text("old")

    def save_half() -> None:
        with replace_on_success(path, "zip") as temporary:
            temporary.write_text("new")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r"3 bytes of it were written, \d+ are free.*model.zip") as caught:
        save_half()
    assert caught.value.errno == number
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.zip"]
