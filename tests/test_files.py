import os
import subprocess
import sys
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
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and pipe.is_fifo()


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        write_text(tmp_path, "text")
    assert tmp_path.is_dir()


def test_what_a_file_may_be_read_by_stays(tmp_path):
    target = tmp_path / "file"
    target.touch(mode=0o600)
    write_text(target, "text")
    assert target.stat().st_mode & 0o777 == 0o600


def test_standard_output_that_goes_to_a_file_is_not_replaced(tmp_path):
    code = "from pathlib import Path; from trade_hf.files import write_text; write_text(Path('/dev/stdout'), 'text')"
    with (tmp_path / "out").open("w") as out:
        out.write("before, ")
        out.flush()
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text().endswith("text") and len(list(tmp_path.iterdir())) == 1
