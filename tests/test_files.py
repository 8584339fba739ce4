import os
import threading

import pytest

from trade_hf.files import write_text, write_whole


@pytest.mark.parametrize("before", [None, "earlier"])
def test_a_file_appears_whole_or_stays_as_it_was(tmp_path, before):
    target = tmp_path / "file"
    if before:
        target.write_text(before)

    def fail(path):
        path.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_whole(target, fail)
    assert (target.read_text() if target.exists() else None) == before
    write_text(target, "whole ≤")
    assert target.read_text(encoding="utf-8") == "whole ≤" and list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "file").write_text("earlier")
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "now")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "now"


def test_a_pipe_stays_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and pipe.is_fifo()


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(OSError):
        write_text(tmp_path, "text")
    assert tmp_path.is_dir()
