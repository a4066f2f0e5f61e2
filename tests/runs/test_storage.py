"""Where outputs cannot be written: a clear error, the right exit code, and what is recorded stays valid."""

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest

from lrp_cli.errors import LrpError
from lrp_cli.runs import files
from lrp_cli.runs.files import StorageError, write_whole
from lrp_cli.runs.manifest import Manifest, read_lines

Make = Callable[..., Path]
SMALL = ("-c", "epsilon", "--resize", "64", "--crop", "64")


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(12):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    return tmp_path / "in"


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "sub/x", b"old", tmp_path)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        write_whole(tmp_path / "sub/x", b"new", tmp_path)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "sub").iterdir()] == [("x", b"old")]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"", tmp_path)
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(LrpError, match="outside"):
        write_whole(tmp_path / "out/sub/x", b"", tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    for elsewhere in (tmp_path / "out/../elsewhere", tmp_path / "elsewhere"):
        with pytest.raises(LrpError, match="outside"):
            write_whole(elsewhere / "x", b"", tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_within_the_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "sub").symlink_to(tmp_path / "real", target_is_directory=True)
    write_whole(tmp_path / "sub/deep/x", b"new", tmp_path)
    assert (tmp_path / "real/deep/x").read_bytes() == b"new"


def test_what_the_system_writes_piece_by_piece_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:1000])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Slow(path, mode.replace("b", "")))
    write_whole(tmp_path / "x", bytes(range(256)) * 30, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == bytes(range(256)) * 30


@pytest.mark.parametrize("name", ["manifest.jsonl", ".lrp.lock"])
def test_the_manifest_and_the_lock_are_no_links(lrp, pictures: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(secret)
    result = lrp.explain(pictures, "-o", tmp_path / "out")
    assert result.code in {1, 2}
    assert str(tmp_path / "out") in result.err
    assert "Traceback" not in result.err
    assert secret.read_text() == "precious"


def test_an_append_that_fails_leaves_the_manifest_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest(tmp_path) as manifest:
        manifest.append([{"a": 1}])
        write = os.write

        def half(handle: int, data: bytes) -> int:
            if len(data) < 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(handle, data[: len(data) - 4])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="No space left"):
            manifest.append([{"b": 2}])
        monkeypatch.undo()
        manifest.append([{"c": 3}])
    assert (tmp_path / "manifest.jsonl").read_text() == '{"a": 1}\n{"c": 3}\n'


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_place_of_the_directory(lrp, pictures: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("precious")
    result = lrp.explain(pictures, "-o", tmp_path / out)
    assert result.code == 2
    assert "file in its place" in result.err
    assert (tmp_path / "file").read_text() == "precious"


def test_a_directory_in_place_of_an_output_fails_that_picture_only(lrp, pictures: Path, tmp_path: Path) -> None:
    first = lrp.explain(pictures, "-o", tmp_path / "a", "--json", "-t", "0")
    blocked = tmp_path / "out" / Path(first.records[3]["outputs"]["npy"]).name
    blocked.mkdir(parents=True)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-t", "0")
    assert result.code == 1
    assert len(result.records) == 11
    assert blocked.name in result.err


def _mounted(disk: Path, options: str) -> bool:
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return bool(shutil.which("mount")) and subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody can write into; root can write into all that are not mounted so."""
    disk = tmp_path / "disk"
    if os.geteuid() != 0:
        disk.mkdir(mode=0o555)
        yield disk
    elif _mounted(disk, "ro"):
        yield disk
        subprocess.run(["umount", str(disk)], check=False)
    else:
        pytest.skip("root may write everywhere, and no read-only disk can be mounted here")


@pytest.mark.parametrize("out", ["", "new"])
def test_a_read_only_directory(lrp, pictures: Path, read_only: Path, out: str) -> None:
    result = lrp.explain(pictures, "-o", read_only / out)
    assert result.code == 2
    assert f"cannot write into --out {read_only / out}: " in result.err
    assert "Traceback" not in result.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not _mounted(tmp_path / "disk", "size=300k"):
        pytest.skip("no small disk can be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=False)


def test_a_full_disk_ends_the_run_and_what_is_recorded_is_intact(lrp, pictures: Path, small_disk: Path) -> None:
    result = lrp.explain(pictures, "-o", small_disk / "out", "--json", "-b", "2")
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "goes on from there" in result.err
    recorded = [line for line, _ in read_lines(small_disk / "out")]
    assert 0 < len(recorded) < 12
    assert None not in recorded
    assert len(recorded) == len(result.records)
    problems = lrp("verify", small_disk / "out", "--json").records
    assert {problem["problem"] for problem in problems} <= {"extra"}


def test_files_that_may_not_grow_end_the_run_as_well(lrp, pictures: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = lrp.process("explain", pictures, *SMALL, "-o", tmp_path / "out", preexec_fn=limit)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"File too large" in err
    assert b"Traceback" not in err
    assert all(line is not None for line, _ in read_lines(tmp_path / "out"))


def test_two_runs_at_once(lrp, pictures: Path, tmp_path: Path) -> None:
    first = lrp.process("explain", "-", *SMALL, "-o", tmp_path / "out", "--json", "-b", "1", stdin=subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write(b"\n".join(os.fsencode(path) for path in sorted(pictures.iterdir()) * 1))
    first.stdin.close()
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/manifest.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = lrp.explain(pictures, "-o", tmp_path / "out", "--json")
    assert first.wait(60) == 0
    if second.code == 0:
        pytest.skip("the first run was over before the second began")
    assert second.code == 2
    assert "another run is writing into" in second.err
    assert len(lrp.explain(pictures, "-o", tmp_path / "out", "--json").records) == 12
    assert lrp("verify", tmp_path / "out").code == 0


def test_the_lock_refuses_a_second_holder_and_is_let_go(tmp_path: Path) -> None:
    from lrp_cli.errors import UsageError
    from lrp_cli.runs.lock import locked

    with locked(tmp_path), pytest.raises(UsageError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_name_that_another_run_has_taken_meanwhile(tmp_path: Path) -> None:
    from lrp_cli.errors import UsageError
    from lrp_cli.runs.manifest import Line
    from lrp_cli.runs.pictures import Picture
    from lrp_cli.runs.session import _check_names

    a, b = (tmp_path / folder / "cat.jpg" for folder in "ab")
    lines = [
        Line(status="done", name="cat.jpg", image="x", source=str(source), settings="") for source in ("/gone.jpg", a)
    ]
    _check_names([Picture(a, PurePath("cat.jpg")), Picture(b, PurePath("b/cat.jpg"))], lines)
    _check_names([Picture(b, PurePath("cat.jpg"))], lines)  # the other one is not there
    a.parent.mkdir()
    a.touch()
    _check_names([Picture(a, PurePath("cat.jpg")), Picture(b, PurePath("b/cat.jpg"))], lines)
    for picture in (Picture(b, PurePath("cat.jpg")), Picture(a, PurePath("cat.jpg"), data=b"x")):
        with pytest.raises(UsageError, match="run this one again"):
            _check_names([picture], lines)
    piped = [Line(status="done", name="stdin", image="stdin", settings="")]
    _check_names([Picture(Path("stdin"), PurePath("stdin"), data=b"x")], piped)
    with pytest.raises(UsageError, match="run this one again"):
        _check_names([Picture(a, PurePath("stdin"))], piped)


def test_the_names_of_temporary_files_are_what_is_removed(tmp_path: Path) -> None:
    for name in (".lrp-x.part", ".lrp-x.png", "x.part", "sub/.lrp-y.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".lrp-x.png", "x.part"]


def test_max_failures_and_fail_fast(lrp, pictures: Path, tmp_path: Path) -> None:
    for number in (2, 4, 6):
        (pictures / f"{number:02}.png").write_bytes(b"broken")
    fast = lrp.explain(pictures, "-o", tmp_path / "a", "--json", "--fail-fast", "-b", "1")
    assert (fast.code, len(fast.records)) == (1, 2)
    assert "stopped after 1 failed" in fast.err
    two = lrp.explain(pictures, "-o", tmp_path / "b", "--json", "--max-failures", "2")
    assert (two.code, len(two.records)) == (1, 3)
    enough = lrp.explain(pictures, "-o", tmp_path / "c", "--json", "--max-failures", "4")
    assert (enough.code, len(enough.records)) == (1, 9)
    missing = lrp.explain("gone.png", pictures, "-o", tmp_path / "d", "--json", "--fail-fast")
    assert (missing.code, missing.records) == (1, [])
    lines = map(json.loads, (tmp_path / "a/manifest.jsonl").read_text().splitlines())
    # What was explained when the run ended is recorded, too.
    assert [Path(line["image"]).name for line in lines if line["status"] == "failed"] == ["02.png"]
