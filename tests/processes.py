"""What tests run until they are done with it: `app.py`, the page in their own process, a browser, a command."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent


def print_warning(message, category, filename, lineno, file=None, line=None):
    """A warning as Python writes it where pytest does not collect it."""
    print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


@contextmanager
def keep_signals():
    """A command that runs in this process leaves none of its signal handlers behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def serving(log, **environment):
    """Run `python app.py` until the end of the block; its output goes to the file `log`. Gives the page's address."""
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "-u", "app.py"], cwd=ROOT, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 120
        while not (served := re.search(r"Running on local URL: +(\S+)", log.read_text())):
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield served.group(1)
    finally:
        app.terminate()
        app.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving_here():
    """Serve the page from this process, where a test may have replaced something, until the end of the block."""
    import app

    # A page that closes clears what it served; another test process must not lose its own by that.
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", folder)
        demo, port = app.build_app(), free_port()
        demo.launch(**app.launch_options(), prevent_thread_lock=True, server_port=port, quiet=True)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            demo.close()


def forget(page, address):
    """Leave the page and what it has stored, but not the code it has read, which is half of what loading costs."""
    page.goto("about:blank")
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": address.rstrip("/"), "storageTypes": "all"})
    session.detach()


def fill_unfolded(field, text):
    """Fill a field that has just unfolded: what is typed while Gradio puts it there is lost."""
    for _ in range(20):
        field.fill(text)
        field.page.wait_for_timeout(300)
        if field.input_value() == text:
            return
    pytest.fail(f"{text!r} does not stay in its field")


@contextmanager
def chromium(*arguments):
    """A browser, started with these arguments, until the end of the block; the test is skipped without one."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Browser tests need Playwright: pip install -r tests/requirements.txt"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("Browser tests need a browser: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
