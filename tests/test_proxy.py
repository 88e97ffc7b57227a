"""deploy/proxy/nginx.conf run by a real nginx in front of a real `labkit serve`."""

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from tiny_server import HELLO, LONG, until
from typer.testing import CliRunner

from labkit.cli import app
from labkit.endpoint import open_http
from labkit.errors import LabError
from labkit.remote import tunnel
from labkit.serving.ports import free_port, port_open
from labkit.serving.runtimes import start_server
from labkit.serving.smoke import smoke_test

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
SECRET = "a prompt that stays between the two of us"

pytestmark = pytest.mark.skipif(
    not NGINX or not shutil.which("openssl"), reason="no nginx or openssl here: apt-get install nginx-light openssl"
)


@dataclass(frozen=True)
class Gate:
    url: str
    keys: dict[str, str]
    engine_key: str
    log: Path
    tls: ssl.SSLContext

    def client(self, key: str = "", **how) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, verify=self.tls, headers=headers, timeout=60, trust_env=False, **how)

    def logged(self) -> list[dict]:
        """The access log's lines; nginx writes each after the answer."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def make_secrets(folder: Path) -> dict[str, str]:
    made = subprocess.run(
        ["sh", DEPLOY / "secrets.sh", "ann", "bob", "cy"],
        env={**os.environ, "SECRETS": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(re.findall(r"key of (\w+), shown once: (\w+)", made.stdout))


@pytest.fixture(scope="module")
def gate(tiny_model_folder, tmp_path_factory):
    """The gate as it stands in deploy/, but for its port and the engine's address."""
    folder, port, engine_port = tmp_path_factory.mktemp("gate"), free_port(), free_port()
    keys = make_secrets(folder / "secrets")
    engine_key = (folder / "secrets" / "engine.key").read_text().strip()
    text = (DEPLOY / "proxy" / "nginx.conf").read_text()
    places = {
        "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server engine:8000": f"server 127.0.0.1:{engine_port}",
    }
    places |= {"/tmp/": f"{folder}/", "/dev/stdout": f"{folder}/access.log", "/dev/stderr": f"{folder}/error.log"}
    for old, new in places.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    how = {"port": engine_port, "device": "cpu", "limits": LONG, "log": folder / "engine.log", "api_key": engine_key}
    with start_server(str(tiny_model_folder), **how), run_nginx(folder / "nginx.conf", port):
        tls = ssl.create_default_context(cafile=folder / "secrets" / "tls.crt")
        yield Gate(f"https://127.0.0.1:{port}", keys, engine_key, folder / "access.log", tls)


@contextlib.contextmanager
def another_gate(gate: Gate, engine_port: int):
    """The same gate in front of another engine: its URL."""
    port, text = free_port(), gate.log.with_name("nginx.conf").read_text()
    text = re.sub(r"listen 127.0.0.1:\d+", f"listen 127.0.0.1:{port}", text)
    text = re.sub(r"server 127.0.0.1:\d+", f"server 127.0.0.1:{engine_port}", text).replace("nginx.pid", "other.pid")
    other = gate.log.with_name("other.conf")
    other.write_text(text)
    with run_nginx(other, port):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def run_nginx(conf: Path, port: int):
    nginx = subprocess.Popen([NGINX, "-c", conf, "-g", "daemon off;"])
    try:
        until(lambda: port_open("127.0.0.1", port) or nginx.poll() is not None)
        yield
    finally:
        nginx.terminate()
        nginx.wait(20)


def ask(client: httpx.Client, **body) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4, **body})


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_with_its_key_is_answered_and_the_engine_never_sees_that_key(gate):
    with gate.client(gate.keys["ann"]) as client:
        answer = ask(client)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"]
    assert answer.headers["X-Request-Id"]
    with gate.client(gate.engine_key) as client:
        refused(ask(client), 401, "invalid_api_key")


def test_no_key_and_a_wrong_key_are_401(gate):
    for key in ("", "wrong", gate.keys["ann"][:-1]):
        with gate.client(key) as client:
            answer = ask(client)
        refused(answer, 401, "invalid_api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_too_large_a_body_is_413_and_one_at_the_limit_goes_through(gate):
    with gate.client(gate.keys["ann"]) as client:
        refused(client.post("/v1/chat/completions", content=b"x" * (256 * 1024 + 1)), 413, "body_too_large")
        passed = client.post("/v1/chat/completions", content=b"x" * 5000)  # the engine's own limit here is 4096
    refused(passed, 413, "body_too_large")
    assert "4096" in passed.json()["error"]["message"]


def test_too_many_requests_with_one_key_are_429_and_another_key_goes_on(gate):
    with gate.client(gate.keys["bob"]) as bob, gate.client(gate.keys["ann"]) as ann:
        answers = [bob.get("/v1/models") for _ in range(40)]
        assert ann.get("/v1/models").status_code == 200
    statuses = [answer.status_code for answer in answers]
    assert statuses[:20] == [200] * 20
    assert 429 in statuses
    last = answers[statuses.index(429)]
    refused(last, 429, "rate_limit_exceeded")
    assert last.headers["Retry-After"] == "1"


def test_a_stream_comes_through_whole(gate):
    body = {"messages": HELLO, "max_tokens": 60, "stream": True}
    with gate.client(gate.keys["cy"]) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        text = answer.read().decode()
    assert text.startswith("data: {")
    assert text.rstrip().endswith("data: [DONE]")


def test_a_stream_is_not_held_back(gate):
    """The engine says its second word only when the client has heard the first."""
    heard = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            self.wfile.write(b"data: heard\n\n" if heard.wait(20) else b"data: held back\n\n")

    engine = HTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=engine.handle_request).start()
    headers = {"Authorization": f"Bearer {gate.keys['cy']}"}
    with (
        another_gate(gate, engine.server_port) as url,
        httpx.stream("GET", f"{url}/v1/x", verify=gate.tls, headers=headers, trust_env=False, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "data: first"
        heard.set()
        assert "data: heard" in list(lines)
    engine.server_close()


def test_only_the_api_is_behind_it(gate):
    with gate.client(gate.keys["ann"]) as client:
        for path in ("/metrics", "/docs", "/openapi.json", "/"):
            refused(client.get(path), 404, "not_found")
    with gate.client() as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/health").json()["status"] == "ok"


def test_the_access_log_has_who_and_what_and_no_prompt_and_no_key(gate):
    with gate.client(gate.keys["ann"]) as client:
        content = [{"role": "user", "content": SECRET}]
        asked = client.post("/v1/chat/completions?note=secret-query", json={"messages": content, "max_tokens": 4})
    until(lambda: any(line["id"] == asked.headers["X-Request-Id"] for line in gate.logged()))
    line = next(line for line in gate.logged() if line["id"] == asked.headers["X-Request-Id"])
    assert (line["client"], line["path"], line["status"]) == ("ann", "/v1/chat/completions", asked.status_code)
    written = gate.log.read_text() + gate.log.with_name("error.log").read_text()
    for word in (SECRET, "secret-query", *gate.keys.values(), gate.engine_key):
        assert word not in written


def test_its_certificate_is_checked_and_old_tls_is_refused(gate):
    with httpx.Client(trust_env=False) as stranger, pytest.raises(httpx.ConnectError, match="verify failed"):
        stranger.get(f"{gate.url}/livez")
    address = gate.url.removeprefix("https://")
    old = ["openssl", "s_client", "-connect", address, "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"]
    done = subprocess.run(old, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert "alert protocol version" in done.stderr, done.stderr


def test_secrets_are_made_once_for_the_owner_alone_and_a_bad_name_is_refused(tmp_path):
    first = make_secrets(tmp_path)
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (set(first), make_secrets(tmp_path)) == ({"ann", "bob", "cy"}, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    bad = ["sh", str(DEPLOY / "secrets.sh"), 'eve" admin; #']
    done = subprocess.run(bad, env={**os.environ, "SECRETS": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, "is not a name" in done.stderr) == (2, True)


def test_the_smoke_test_of_the_page_goes_through_the_gate(gate, monkeypatch):
    """deploy/README.md: SSL_CERT_FILE names the certificate, LABKIT_API_KEY the key."""
    url = gate.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("LABKIT_API_KEY", gate.keys["cy"])
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(LabError, match="CERTIFICATE_VERIFY_FAILED"):
        smoke_test(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(gate.log.parent / "secrets" / "tls.crt"))
    assert smoke_test(url)["has_choices"]
    with open_http(url, 10) as client:
        assert client.get("/v1/models").status_code == 200
    monkeypatch.setattr(
        tunnel, "open_tunnel", lambda *_: contextlib.nullcontext()
    )  # the gate's port stands for its near end
    words = ["tunnel", "ann@gpu", "--port", gate.url.rpartition(":")[2], "--tls", "--once"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, '"has_choices": true' in done.output) == (0, True), done.output


def test_the_engine_s_key_is_the_whole_file(tmp_path):
    """A Kubernetes Secret hands the file on as it is, and vLLM compares every byte: a line end would be of the key."""
    make_secrets(tmp_path)
    key = (tmp_path / "engine.key").read_bytes()
    assert re.fullmatch(rb"[0-9a-f]{48}", key)
    assert (tmp_path / "engine.map").read_bytes() == b'default "Bearer %s";\n' % key


def test_an_engine_that_is_gone_is_503_in_openai_s_shape(gate):
    with another_gate(gate, free_port()) as url:
        headers = {"Authorization": f"Bearer {gate.keys['ann']}"}
        answer = httpx.get(f"{url}/v1/models", verify=gate.tls, headers=headers, trust_env=False)
    refused(answer, 503, "model_loading")
    assert answer.headers["Retry-After"] == "5"
