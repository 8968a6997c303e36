"""`aic view`: the page and the files that were named, to whoever knows the address, and nothing else."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from click.testing import CliRunner

from aiocodec import errors
from aiocodec.cli import cli
from aiocodec.cli import view as view_module
from aiocodec.container import ChunkType, Header, Latents, pack, pack_latents
from aiocodec.serving import HOST, Server

# `aic` with the page of a folder
COMMAND = """
import sys
from pathlib import Path
from aiocodec import __main__
from aiocodec.cli import view
view.PAGE = Path(sys.argv.pop(1))
__main__.main()
"""
LATENTS = (ChunkType.LATENTS, pack_latents(Latents(b"", 1, 1)))


def coded(quality=50):
    return pack(Header(quality, 60, 40, b"8 bytes!"), [LATENTS])


@pytest.fixture
def page(tmp_path):
    """The folder of a page, and beside it what must not be seen."""
    folder = tmp_path / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>viewer</title>")
    (folder / "assets" / "main.js").write_text("1")
    (folder / "assets" / "ort.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret.aic").write_bytes(coded())
    (tmp_path / "page.txt").write_text("secret")
    return folder


@contextmanager
def serving(page, files):
    """A server of this process at work."""
    with Server(page, files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def viewing(page, *arguments, **options):
    """The command at work, as (process, address)."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(page), "view", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        line = process.stderr.readline()
        found = re.fullmatch(r"aic: .* Ctrl-C, at (http://\S+)\n", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def ask(address, path=None, method="GET", host=None):
    """What the server of an address answers: (status, headers, body). `path` is sent as it stands."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        connection.putrequest(method, path or parts.path, skip_host=True)
        for name in [parts.netloc] if host is None else host:
            connection.putheader("Host", name)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def sources(address):
    """The paths of the files in an address, as a page resolves them."""
    parts = urlsplit(address)
    folder = parts.path.rpartition("/")[0]
    return [f"{folder}/{source}" for source in parse_qs(parts.fragment)["src"]]


def reading(data):
    return lambda: data


# --------------------------------------------------------------------------- what is served


def test_the_page_and_the_files_are_served_as_what_they_are(page):
    with serving(page, [("a.aic", reading(b"first")), ("b.aic", reading(b"second"))]) as server:
        status, headers, body = ask(server.address)
        assert (status, body) == (200, b"<title>viewer</title>")
        root = urlsplit(server.address).path.removesuffix("index.html")
        kinds = {"": "html", "index.html": "html", "assets/main.js": "javascript"}
        for path, kind in kinds.items():
            status, headers, _ = ask(server.address, root + path)
            assert (status, headers["Content-Type"]) == (200, f"text/{kind}; charset=utf-8")
        _, headers, body = ask(server.address, root + "assets/ort.wasm?v=1")
        assert (headers["Content-Type"], body) == ("application/wasm", b"\0asm")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        paths = sources(server.address)
        assert paths == [root + "files/0/a.aic", root + "files/1/b.aic"]
        assert [ask(server.address, path)[2] for path in paths] == [b"first", b"second"]


@pytest.mark.parametrize("name", ["a b.aic", "100%25 #1?&=+.aic", "Gr\u00fc\u00dfe \u96e8.aic"])
def test_any_name_comes_through_an_address(page, name):
    with serving(page, [(name, reading(name.encode()))]) as server:
        assert server.address.isascii() and " " not in server.address
        (path,) = sources(server.address)
        assert ask(server.address, path)[2] == name.encode()
        assert path.endswith("/" + quote(name, safe=""))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_a_name_that_is_no_utf_8_comes_through_an_address(page):
    with serving(page, [(os.fsdecode(b"\xff.aic"), reading(b"data"))]) as server:
        assert ask(server.address, sources(server.address)[0])[2] == b"data"


def test_head_is_get_without_the_content(page):
    with serving(page, [("a.aic", reading(b"content"))]) as server:
        for path in (None, sources(server.address)[0], "/wrong"):
            status, headers, body = ask(server.address, path)
            again = ask(server.address, path, "HEAD")
            assert again[0] == status and again[2] == b"" and body
            assert {**again[1], "Date": ""} == {**headers, "Date": ""}


# --------------------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    "path",
    [
        "../page.txt",
        "%2e%2e/page.txt",
        "..%2fpage.txt",
        "assets/../../page.txt",
        "assets",
        "assets/",
        "//etc/passwd",
        "{page}/index.html",
        "files",
        "files/",
        "files/1/b.aic",
        "files/-1/a.aic",
        "files/00/a.aic",
        "files/%D9%A0/a.aic",
        "files/../../secret.aic",
        "index.html/",
        "index.html%00",
        "INDEX.HTML",
    ],
)
def test_no_path_leads_elsewhere(page, path):
    with serving(page, [("a.aic", reading(b"content"))]) as server:
        root = urlsplit(server.address).path.removesuffix("index.html")
        status, headers, body = ask(server.address, root + path.format(page=page))
        assert status == 404 and b"no such file" in body
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_is_there_without_the_secret(page):
    with serving(page, [("a.aic", reading(b"content"))]) as server:
        secret = server.secret
        assert len(secret) >= 32
        other = secret[:-1] + ("a" if secret[-1] != "a" else "b")
        for path in ("/", "//", "/index.html", f"/{secret}", f"/{other}/index.html", "*", "x"):
            assert ask(server.address, path)[0] == 404
        for start in (f"/{secret[:-1]}", f"/{secret}x", "/\u00e9", f"/x/{secret}", ""):
            connection = http.client.HTTPConnection(HOST, server.server_port)
            connection._validate_path = lambda path: None
            connection._encode_request = lambda request: request.encode("latin-1")
            connection.request("GET", f"{start}/files/0/a.aic")
            assert connection.getresponse().status == 404
            connection.close()
        with Server(page, []) as another:
            assert another.secret != secret


def test_other_names_of_the_host_are_refused(page):
    with serving(page, [("a.aic", reading(b"content"))]) as server:
        port = server.server_port
        assert ask(server.address, host=[f"localhost:{port}"])[0] == 200
        right = f"{HOST}:{port}"
        for host in (
            [],
            [f"rebound.example:{port}"],
            [HOST],
            [f"{HOST}:{port + 1}"],
            [f"{HOST}.example:{port}"],
            [right, f"rebound.example:{port}"],
        ):
            status, _, body = ask(server.address, host=host)
            assert status == 403 and b"viewer" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_files_can_but_be_read(page, method):
    with serving(page, [("a.aic", reading(b"content"))]) as server:
        status, headers, body = ask(server.address, method=method)
        assert status in (405, 501) and b"viewer" not in body
        assert status == 501 or headers["Allow"] == "GET, HEAD"


def test_only_this_machine_can_connect(page):
    with Server(page, []) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_file_that_went_away_is_a_sentence_and_the_rest_is_served(page):
    def gone():
        raise errors.BitstreamError("cannot be read: it went away")

    with serving(page, [("a.aic", gone), ("b.aic", reading(b"content"))]) as server:
        first, second = sources(server.address)
        status, headers, body = ask(server.address, first)
        assert (status, body) == (404, b"cannot be read: it went away\n")
        assert headers["Content-Type"].startswith("text/plain")
        assert ask(server.address, second)[2] == b"content"


def test_who_hangs_up_is_not_spoken_of(page, capfd):
    with serving(page, [("a.aic", reading(bytes(1 << 24)))]) as server:
        path = sources(server.address)[0]
        for _ in range(3):
            with socket.create_connection((HOST, server.server_port)) as connection:
                request = f"GET {path} HTTP/1.0\r\nHost: {HOST}:{server.server_port}\r\n\r\n"
                connection.sendall(request.encode())
                connection.recv(100)
        assert ask(server.address)[0] == 200
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------- the command


def test_files_are_read_when_they_are_asked_for(page, tmp_path):
    name = tmp_path / "a b \u96e8.aic"
    name.write_bytes(coded(10))
    # a relative name, and options of any order
    with viewing(page, "--no-browser", name.name, cwd=tmp_path) as (_, address):
        assert ask(address)[2] == b"<title>viewer</title>"
        (path,) = sources(address)
        assert ask(address, path)[2] == coded(10)
        name.write_bytes(coded(90))
        assert ask(address, path)[2] == coded(90)
        name.unlink()
        assert ask(address, path)[0] == 404


def test_stdin_is_read_once(page, tmp_path):
    (tmp_path / "in.aic").write_bytes(coded())
    with (
        open(tmp_path / "in.aic", "rb") as stdin,
        viewing(page, "-", "--no-browser", stdin=stdin) as (_, address),
    ):
        for _ in range(2):
            assert ask(address, sources(address)[0])[2] == coded()


def test_folders_are_taken_as_decode_takes_them(page, tmp_path):
    folder = tmp_path / "shots"
    for name in ("b/y.aic", "a.AIC", ".hidden.aic", "z.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(coded())
    with viewing(page, "-r", folder, "--no-browser") as (_, address):
        names = [path.rpartition("/")[2] for path in sources(address)]
        assert names == ["a.AIC", "y.aic"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 0, ""), (signal.SIGTERM, 143, "aic: terminated\n")],
)
def test_ctrl_c_is_the_end_and_no_failure(page, tmp_path, number, code, words):
    with viewing(page, tmp_path / "secret.aic", "--no-browser") as (process, address):
        with socket.create_connection((HOST, urlsplit(address).port)):  # and it asks for nothing
            start = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
            assert time.monotonic() - start < 5
        assert (process.returncode, out, err) == (code, "", words)
        with pytest.raises(OSError):
            socket.create_connection((HOST, urlsplit(address).port)).close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a script that can be run")
def test_the_browser_is_started_with_the_address_and_not_waited_for(page, tmp_path):
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(
        f'#!/bin/sh\necho "$1" > {told}.new; mv {told}.new {told}; exec sleep 5 >/dev/null 2>&1\n'
    )
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    start = time.monotonic()
    with viewing(page, tmp_path / "secret.aic", env=environment) as (_, address):
        assert ask(address)[0] == 200
        while not told.exists() and time.monotonic() < start + 4:
            time.sleep(0.02)
        assert told.read_text() == address + "\n" and time.monotonic() < start + 4


def test_two_cannot_have_one_port(page, tmp_path, monkeypatch):
    monkeypatch.setattr(view_module, "PAGE", page)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["view", str(tmp_path / "secret.aic"), "--no-browser", "--port", str(port)]
        result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and f"port {port} of {HOST} cannot be had" in result.output
    with viewing(page, *arguments[1:]) as (_, address):  # now it is free
        assert urlsplit(address).port == port


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("page.txt", errors.BitstreamError, "not an .aic file"),
        ("missing.aic", errors.BitstreamError, "cannot be read"),
        ("short.aic", errors.BitstreamError, "truncated"),
        ("future.aic", errors.VersionError, "unknown bitstream version"),
    ],
)
def test_what_is_no_aic_file_is_refused_first(page, tmp_path, monkeypatch, name, kind, words):
    (tmp_path / "short.aic").write_bytes(coded()[:20])
    (tmp_path / "future.aic").write_bytes(coded()[:4] + b"\x63" + coded()[5:])
    monkeypatch.setattr(view_module, "PAGE", page)
    arguments = ["view", tmp_path / "secret.aic", tmp_path / name, "--no-browser"]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert type(result.exception) is kind and result.output == ""
    assert str(result.exception).startswith(f"{tmp_path / name}: {words}")


def test_a_page_that_was_not_built_is_a_sentence_that_says_how(page, tmp_path):
    (page / "index.html").unlink()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(page), "view", str(tmp_path / "secret.aic")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (errors.RuntimeMissing.exit_code, "")
    assert re.fullmatch("aic: .*npm ci && npm run build.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["{folder}"], "--recursive"),
        (["{folder}/secret.aic", "--port", "65536"], "--port"),
    ],
)
def test_wrong_usage(page, tmp_path, arguments, words):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    result = CliRunner().invoke(cli, ["view", *arguments])
    assert result.exit_code == 2 and words in result.output


def test_a_folder_without_files_is_refused(page, tmp_path):
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(cli, ["view", "-r", str(tmp_path / "empty")])
    assert isinstance(result.exception, errors.BitstreamError)


def test_the_server_is_loaded_when_it_is_needed(python):
    script = "import sys, aiocodec.cli\nprint({'http.server', 'webbrowser'} & set(sys.modules))"
    assert python(script) == "set()\n"


def test_the_page_has_its_place_in_the_package():
    import aiocodec

    assert Path(aiocodec.__file__).parent / "viewer" == view_module.PAGE
