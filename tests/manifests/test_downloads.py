"""Downloads from a real server on loopback, from folders and file:// addresses, and everything that can go wrong."""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests._download_files import FILES, RemoteFile
from manifests.downloads import DownloadError, download, verify
from manifests.errors import ManifestError

CONTENT = {"set/a.json": b"[1]", "set/deep/b c.txt": b"text\n" * 1000, "set/open.txt": "grün".encode(), "two/x": b"x"}


def remote(path: str, base: str = "http://127.0.0.1:1", **changes: Any) -> RemoteFile:
    data = CONTENT[path]
    values = {"sha256": (hashlib.sha256(data).hexdigest(),)} | changes
    return RemoteFile(path=path, url=f"{base}/up/{path.replace(' ', '%20')}", upstream=f"up/{path}", **values)


def table(base: str = "http://127.0.0.1:1") -> dict[str, tuple[RemoteFile, ...]]:
    return {
        "set": (
            remote("set/a.json", base),
            remote("set/deep/b c.txt", base),
            remote("set/open.txt", base, sha256=(), characters=4),
        ),
        "two": (remote("two/x", base),),
    }


def store(folder: Path, prefix: str = "") -> Path:
    for path, data in CONTENT.items():
        target = folder / prefix / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves ``tmp_path/www``; ``requests`` lists the paths asked for."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def address(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_the_public_addresses_are_used_without_a_source(server: Any, tmp_path: Path) -> None:
    store(tmp_path / "www", "up")
    lines: list[str] = []
    done = download("set", tmp_path / "to", files=table(address(server)), progress=lines.append)
    assert contents(tmp_path / "to") == {k: v for k, v in CONTENT.items() if k.startswith("set/")}
    assert [p.name for p in done.fetched] == ["a.json", "b c.txt", "open.txt"]
    assert lines == ["fetched set/a.json", "fetched set/deep/b c.txt", "fetched set/open.txt"]
    assert server.requests == ["/up/set/a.json", "/up/set/deep/b%20c.txt", "/up/set/open.txt"]


def test_running_again_asks_only_for_what_is_missing(server: Any, tmp_path: Path) -> None:
    store(tmp_path / "www")
    download("all", tmp_path / "to", address(server), files=table())
    (tmp_path / "to/set/deep/b c.txt").unlink()
    server.requests.clear()
    done = download("all", tmp_path / "to", address(server) + "/", files=table())
    assert server.requests == ["/set/deep/b%20c.txt"]
    assert (len(done.fetched), len(done.skipped)) == (1, 3)
    assert contents(tmp_path / "to") == CONTENT


def test_wrong_and_missing_files_are_named_and_the_rest_is_kept(server: Any, tmp_path: Path) -> None:
    www = store(tmp_path / "www")
    (www / "set/a.json").write_bytes(b"[2]")
    (www / "set/open.txt").unlink()
    with pytest.raises(DownloadError) as caught:
        download("set", tmp_path / "to", address(server), files=table())
    first, second = caught.value.problems
    assert first.file.endswith("/set/a.json")
    assert f"has sha256 {hashlib.sha256(b'[2]').hexdigest()[:12]} and 3 bytes; expected sha256" in first.what
    assert "404" in second.what and second.file.endswith("/set/open.txt")
    assert contents(tmp_path / "to") == {"set/deep/b c.txt": CONTENT["set/deep/b c.txt"]}
    assert caught.value.exit_code == 1


def test_an_answer_cut_short_is_not_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n[1")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DownloadError, match=r"a\.json"):
            download("one", tmp_path / "to", base, files={"one": table()["set"][:1]})
        thread.join()
    assert contents(tmp_path / "to") == {}


def test_no_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"  # free once closed: nobody answers there
    store(tmp_path / "to")
    (tmp_path / "to/two/x").unlink()
    (tmp_path / "to/set/a.json").write_bytes(b"mine")
    with pytest.raises(DownloadError) as caught:
        download("all", tmp_path / "to", base, files=table())
    in_the_way, offline = caught.value.problems
    assert "is there, but has sha256" in in_the_way.what
    assert offline.what.startswith(f"no connection to {base.removeprefix('http://')}")
    assert "give their folder as the source" in offline.fix


def test_a_file_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    store(tmp_path / "from")
    (tmp_path / "to/set").mkdir(parents=True)
    (tmp_path / "to/set/a.json").write_bytes(b"edited")
    with pytest.raises(DownloadError, match="it was not changed"):
        download("set", tmp_path / "to", tmp_path / "from", files=table())
    assert (tmp_path / "to/set/a.json").read_bytes() == b"edited"
    assert (tmp_path / "to/set/open.txt").exists()


@pytest.mark.parametrize("layout", ["whole", "one data set", "public repository", "file address"])
def test_folders(tmp_path: Path, layout: str) -> None:
    folder = store(tmp_path / "from here", "up" if layout == "public repository" else "")
    source: str | Path = folder
    if layout == "one data set":
        source = str(folder / "set")
    elif layout == "file address":
        source = folder.as_uri()
    download("set", tmp_path / "to", source, files=table())
    assert contents(tmp_path / "to") == {k: v for k, v in CONTENT.items() if k.startswith("set/")}


def test_a_folder_without_a_file_or_with_a_wrong_one(tmp_path: Path) -> None:
    folder = store(tmp_path / "from")
    (folder / "set/a.json").unlink()
    (folder / "set/open.txt").write_bytes(b"\xff")
    with pytest.raises(DownloadError) as caught:
        download("set", tmp_path / "to", folder, files=table())
    assert [p.what.split(":")[0] for p in caught.value.problems] == ["holds no set/a.json", "cannot be read"]
    assert not list((tmp_path / "to").rglob("*.part"))


def test_sources_and_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no such folder"):
        download("set", tmp_path, tmp_path / "nowhere", files=table())
    with pytest.raises(DownloadError, match="cannot fetch from s3://"):
        download("set", tmp_path, "s3://bucket/data", files=table())
    with pytest.raises(ManifestError, match="did you mean 'shoes'"):
        download("shoe", tmp_path)


def test_a_remark_on_a_known_copy(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    file = remote("two/x", notes=((digest, "a shorter copy"),))
    done = download("two", tmp_path / "to", store(tmp_path / "from"), files={"two": (file,)})
    assert done.notes == ("two/x: a shorter copy",)


def test_the_table_is_well_formed() -> None:
    files = [file for group in FILES.values() for file in group]
    assert len({file.path for file in files}) == len(files) == 29
    for name, group in FILES.items():
        assert all(file.path.startswith(f"{name}/") and ".." not in file.path for file in group)
    for file in files:
        assert file.url.startswith("https://") and file.url.endswith(file.upstream)
        assert file.sha256 or file.characters
        assert all(len(d) == 64 and set(d) <= set("0123456789abcdef") for d in file.sha256)


def test_the_real_files_are_what_the_table_says(shared_data: Path, tmp_path: Path) -> None:
    done = download("all", tmp_path, shared_data)
    assert len(done.fetched) == 29 and len(done.notes) == 2
    assert all(not verify(file, tmp_path / file.path) for group in FILES.values() for file in group)
