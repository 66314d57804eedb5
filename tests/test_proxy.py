"""The page behind a reverse proxy: under a path, by another name, in a frame of another page."""

import contextlib
import http.client
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from processes import chromium, serving_here
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import app as page


NAME = "lab.example.org"


class Proxy(BaseHTTPRequestHandler):
    """Serves the page under /lab, as nginx does with `location /lab/`, and a page of its own that frames it."""

    def do_GET(self):
        if self.path == "/course":
            return self._answer(200, [("content-type", "text/html")], b"<iframe src='/lab/' width=1200 height=900>")
        if not self.path.startswith("/lab/"):
            return self._answer(404, [], b"")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        upstream.request(self.command, self.path.removeprefix("/lab"), body, dict(self.headers))
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):  # the page or the browser is gone
            streams = answer.getheader("content-type", "").startswith("text/event-stream")
            while piece := answer.read1(65536):
                # Events pass as they come, but over a slow line: a stream's end arrives well after its last event.
                for message in re.split(rb"(?<=\n\n)", piece) if streams else [piece]:
                    self.wfile.write(message)
                    self.wfile.flush()
                    time.sleep(0.5 if streams else 0)
        upstream.close()

    do_POST = do_GET

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page behind the proxy; its address by another name, which only the browser knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(tmp_path_factory.mktemp("proxy") / "runs"))
        patch.setenv("GRADIO_ROOT_PATH", "/lab")
        patch.setenv("RLHF_HOSTS", NAME)
        with serving_here() as address:
            proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
            proxy.upstream = urlsplit(address).port
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            yield f"http://{NAME}:{proxy.server_port}"
            proxy.shutdown()


@pytest.fixture(scope="module")
def browser(site):
    """Keeps what it has read of the page for both tests."""
    with chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser:
        yield browser.new_context()


@pytest.mark.parametrize("start", ["/lab/", "/course"])
def test_charts_live_view_and_downloads_work_under_a_path_and_in_a_frame(browser, site, start):
    """B39, B40: under GRADIO_ROOT_PATH, by a name from RLHF_HOSTS."""
    from playwright.sync_api import expect

    tab = browser.new_page()
    missing = []
    tab.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    tab.goto(site + start)
    frame = tab.frame_locator("iframe") if start == "/course" else tab
    frame.locator(".chart[data-part=ppo] .plot .main-svg").first.wait_for(timeout=60_000)
    expect(frame.locator(".verdict").first).to_contain_text("score", timeout=30_000)
    with tab.expect_download(timeout=60_000) as download:
        frame.locator("button.download").click()
    assert download.value.suggested_filename == "example.zip" and download.value.failure() is None
    frame.get_by_role("tab", name="Scores").click()
    frame.locator(".plot .main-svg:visible").first.wait_for(timeout=60_000)
    if start == "/lab/":  # the address of a frame is not shown
        expect(tab).to_have_url(f"{site}/lab/?run=example&tab=scores")
        tab.reload()
        tab.locator("[role=tab][aria-selected=true]", has_text="Scores").wait_for(timeout=60_000)
        expect(tab.locator("#run input")).to_have_value("Example run", timeout=60_000)
        tab.locator(".plot .main-svg:visible").first.wait_for(timeout=60_000)
        expect(tab).to_have_url(f"{site}/lab/?run=example&tab=scores")
    assert [url for url in missing if "favicon" not in url] == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (NAME, 200),
        (f"{NAME.upper()}:8443", 200),
        ("[::1]:7860", 200),
        ("192.168.1.5:7860", 200),
        ("localhost", 200),
        ("evil.example", 400),
        (f"{NAME}.evil.example", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_the_page_answers_to_the_names_it_was_given_and_says_how_to_give_one(monkeypatch, host, status):
    """B40."""
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.setenv("RLHF_HOSTS", f"{NAME}, other.example")

    async def hello(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    answer = TestClient(page.Hosts(hello, allowed_hosts=page.hosts())).get("/", headers={"host": host})
    assert answer.status_code == status
    if host == "evil.example":
        assert answer.text.endswith("if it is yours, start it with RLHF_HOSTS=evil.example.")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": f"https://{NAME}"}, 200),  # a proxy that has changed the host
        ({"origin": "https://codespace.example", "sec-fetch-site": "same-origin"}, 200),  # and one nobody has named
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": f"https://{NAME}.evil.example"}, 403),
        ({"origin": "http://127.0.0.1:7861"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://192.168.1.66"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[::1"}, 403),
    ],
)
def test_what_another_page_sends_is_refused(monkeypatch, headers, status):
    """Without this any page that a browser shows could fill the disk by uploads, or start a training."""
    monkeypatch.setenv("RLHF_HOSTS", NAME)
    browser = TestClient(page.Hosts(PlainTextResponse("hello"), allowed_hosts=page.hosts()))
    headers = {"host": "127.0.0.1:7860", **headers}
    assert browser.post("/gradio_api/upload", headers=headers).status_code == status
    assert browser.get("/", headers=headers).status_code == 200


def test_in_a_classroom_the_page_answers_to_its_computers_names_and_to_those_that_were_given(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("RLHF_HOSTS", NAME)
    monkeypatch.setattr(socket, "gethostname", lambda: "Teacher-PC")
    browser = TestClient(page.Hosts(PlainTextResponse("hello"), allowed_hosts=page.hosts()))
    for host in ("192.168.1.5:7860", "teacher-pc:7860", "teacher-pc.local:7860", NAME, "localhost:7860"):
        assert browser.get("/", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "teacher-pc.evil.example"):
        assert browser.get("/", headers={"host": host}).status_code == 400, host
