"""A real JupyterLab in headless Chromium, driven by name rather than by mouse position.

    with Lab(folder) as lab, chromium() as browser:
        with Visitor(lab, browser).open("0-start-here.ipynb") as page:
            page.run_all()
            page.press_slider(cell=3, key="ArrowRight")

Command line: ``python tests/browser/lab.py render NOTEBOOK OUT.png [--dark]`` draws a stored
notebook as one tall picture, without a kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from nbconvert import HTMLExporter
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM = os.environ.get("DQLAB_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ["background-networking", "component-update", "sync", "quic"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{q}" for q in QUIET)]
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
START_S, OPEN_MS, RUN_MS, REACT_MS = 60, 60_000, 180_000, 10_000
# JupyterLab's bars around a notebook; how long it takes to lay out a taller window.
MARGIN_PX, SETTLE_MS = 200, 500
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
}
# Widgets draw by blob: addresses, which are new each time: the bytes behind them count. One that
# is gone before it is read was just being replaced.
PICTURES = """async area => {
    const bytes = async one => one.src ? await (await fetch(one.src)).arrayBuffer()
        : new TextEncoder().encode(one.toDataURL ? one.toDataURL() : one.outerHTML)
    const digest = async one => {
        try { return new Uint8Array(await crypto.subtle.digest('SHA-256', await bytes(one))) }
        catch { return 'gone' }
    }
    const drawn = [...area.querySelectorAll('img, canvas, svg.main-svg')]
    return (await Promise.all(drawn.map(digest))).join()
}"""
DISABLED = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}


def missing_browser() -> str:
    """Why no browser test can run here, or nothing."""
    if Path(CHROMIUM).exists():
        return ""
    return f"no Chromium at {CHROMIUM}: install it (apt install chromium) or set DQLAB_CHROMIUM"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser that does not phone home."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A JupyterLab server on a private copy of a folder; settings and history are private too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Lab:
        self.home = Path(tempfile.mkdtemp(prefix="dqlab-lab-"))
        self.root = self.home / "notebooks"
        skipped = shutil.ignore_patterns("src", "student", ".*", "__pycache__")
        shutil.copytree(self._folder, self.root, ignore=skipped)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = (self.home / "server.log").open("w", encoding="utf-8")
        self._server = subprocess.Popen(
            self._command(), env=self._environment(), stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._log.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _command(self) -> list[str]:
        settings = self.home / "settings"
        settings.mkdir()
        (settings / "overrides.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.url.rsplit(":", 1)[1],
            "ServerApp.port_retries": "0",
            "ServerApp.root_dir": str(self.root),
            "ServerApp.allow_root": "True",
            "ServerApp.disable_check_xsrf": "True",
            "IdentityProvider.token": "",
            "LabApp.expose_app_in_browser": "True",
            "LabApp.extension_manager": "readonly",
            "LabApp.app_settings_dir": str(settings),
        }
        flags = [f"--{key}={value}" for key, value in options.items()]
        return [sys.executable, "-m", "jupyterlab", "--no-browser", *flags]

    def _environment(self) -> dict[str, str]:
        config = self.home / "config"
        (config / "labconfig").mkdir(parents=True)
        text = json.dumps(DISABLED)
        (config / "labconfig" / "page_config.json").write_text(text, encoding="utf-8")
        private = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data"}
        private |= {"JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
        places = {name: str(self.home / folder) for name, folder in private.items()}
        return os.environ | {"OMP_NUM_THREADS": "1"} | places

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{self.url}/api/status", timeout=5).close()
                return
            time.sleep(0.2)
        log = (self.home / "server.log").read_text(encoding="utf-8")
        raise RuntimeError(f"JupyterLab did not start at {self.url}:\n{log[-3000:]}")


class NotebookPage:
    """One notebook, open in JupyterLab. Cells are counted from 0, markdown cells included."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.console_errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))
        page.goto(url)
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.model")
        self._js("async panel => { await panel.context.ready; await panel.revealed }")
        self._js("async panel => { await panel.sessionContext.ready }")

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.outside.append(url)

    def _js(self, function: str, *arguments: object) -> Any:
        """Call a JavaScript function of the notebook panel and further arguments."""
        wrapped = f"async given => ({function})(window.jupyterapp.shell.currentWidget, ...given)"
        return self.page.evaluate(wrapped, list(arguments))

    def command(self, name: str, **arguments: object) -> None:
        """Run one of JupyterLab's commands and wait until it is done."""
        self.page.evaluate(
            "async ([name, args]) => { await window.jupyterapp.commands.execute(name, args) }",
            [name, arguments],
        )

    # ------------------------------------------------------------------------ run, read, write
    def run_all(self) -> None:
        """Run every cell and wait; raises AssertionError if one fails."""
        self.command("notebook:run-all-cells")
        self.wait_idle()
        assert not self.errors(), self.errors()

    def run_cell(self, cell: int) -> None:
        """Run one cell and wait until the kernel is idle again."""
        self._js("(panel, cell) => { panel.content.activeCellIndex = cell }", cell)
        self.command("notebook:run-cell")
        self.wait_idle()

    def write_cell(self, cell: int, source: str) -> None:
        """Replace what a cell says, as a student does."""
        script = "(panel, cell, text) => panel.content.widgets[cell].model.sharedModel.setSource"
        self._js(f"{script}(text)", cell, source)

    def wait_idle(self) -> None:
        """Wait until the kernel has answered everything."""
        idle = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
        self.page.wait_for_function(f"{idle} === 'idle'", timeout=RUN_MS)

    def cells(self) -> list[dict[str, Any]]:
        """The cells as they are now, outputs included."""
        return self._js("panel => panel.content.model.toJSON().cells")

    def errors(self) -> list[str]:
        """Errors among the outputs."""
        return [
            f"cell {number}: {output['ename']}: {output['evalue']}"
            for number, cell in enumerate(self.cells())
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def text(self, cell: int) -> str:
        """What a cell's output area shows, as text."""
        return self.outputs(cell).inner_text()

    # --------------------------------------------------------------------------------- widgets
    def outputs(self, cell: int) -> Locator:
        """The output area of a cell."""
        area = self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-OutputArea").first
        area.scroll_into_view_if_needed()
        return area

    def explorers(self) -> list[int]:
        """Cells tagged explorer."""
        tags = (cell["metadata"].get("tags", []) for cell in self.cells())
        return [number for number, names in enumerate(tags) if "explorer" in names]

    def picture(self, cell: int) -> str:
        """All pictures in a cell's output in one word, equal when they are."""
        return self.outputs(cell).evaluate(PICTURES)

    def press_slider(self, cell: int, key: str = "ArrowRight", slider: int = 0) -> bool:
        """Press a key on a slider; whether the picture changed."""
        handle = self.outputs(cell).locator(".noUi-handle").nth(slider)
        return self._changes(cell, lambda: (handle.focus(), handle.press(key)))

    def nudge(self, cell: int) -> bool:
        """Move the first control of an explorer, and run it if it waits for that; as above."""
        area = self.outputs(cell)
        controls = area.locator(".noUi-handle, select, input[type=checkbox]")
        kind = controls.first.evaluate("one => one.localName")
        go = area.get_by_role("button", name="Run (")
        if kind == "select":
            # JupyterLab keeps arrow keys for itself while a closed list has the focus.
            other = controls.first.evaluate("one => (one.selectedIndex + 1) % one.length")
            return self._changes(cell, lambda: controls.first.select_option(index=other), go)
        # At the end of its range a slider moves one way only.
        for key in (" ",) if kind == "input" else ("ArrowRight", "ArrowDown", "ArrowLeft"):
            controls.first.focus()
            if self._changes(cell, lambda key=key: controls.first.press(key), go):
                return True
        return False

    def press_button(self, cell: int, label: str) -> bool:
        """Press the button with this label; whether the picture changed."""
        button = self.outputs(cell).get_by_role("button", name=label, exact=True)
        return self._changes(cell, button.first.click)

    def buttons(self, cell: int) -> list[str]:
        """Labels of the widget buttons in a cell."""
        return self.outputs(cell).locator("button.jupyter-button").all_inner_texts()

    def _changes(self, cell: int, act: Callable[[], object], go: Locator | None = None) -> bool:
        before = self.picture(cell)
        act()
        if go is not None and go.count():
            go.click()
        deadline = time.monotonic() + REACT_MS / 1000
        while time.monotonic() < deadline:
            if self.picture(cell) != before:
                self.wait_idle()
                return self.picture(cell) != before
            self.page.wait_for_timeout(50)
        return False

    def hover_plot(self, cell: int) -> None:
        """Wake the live plot behind a stored picture, and wait for it."""
        still = self.outputs(cell).locator("img.plot-img")
        # The live plot slides under the pointer in the middle of the hover.
        still.first.hover(force=True)
        self.outputs(cell).locator(".js-plotly-plot").first.wait_for(timeout=REACT_MS)

    # ----------------------------------------------------------------------------------- looks
    def theme(self, name: str) -> None:
        """Switch to LIGHT or DARK."""
        self.command("apputils:change-theme", theme=name)
        light = str(name == LIGHT).lower()
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{light}'")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def screenshot(self, path: Path) -> None:
        """The whole notebook as it stands, in a window as tall as it needs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.page.viewport_size
        needed = (
            "() => document.querySelector('.jp-Notebook .jp-WindowedPanel-outer').scrollHeight"
        )
        height = max(before["height"], self.page.evaluate(needed) + MARGIN_PX)
        self.page.set_viewport_size({"width": before["width"], "height": height})
        self._js("panel => panel.content.scrollToItem(0)")
        self.page.wait_for_timeout(SETTLE_MS)
        self.page.screenshot(path=path)
        self.page.set_viewport_size(before)


class Visitor:
    """Opens notebooks of one Lab in one browser."""

    def __init__(self, lab: Lab, browser: Browser) -> None:
        self._lab, self.browser = lab, browser

    @contextlib.contextmanager
    def open(self, name: str, height: int = 1600) -> Iterator[NotebookPage]:
        """Open a notebook, alone in its window, and start its kernel."""
        context = self.browser.new_context(viewport={"width": 1280, "height": height})
        context.set_default_timeout(OPEN_MS)
        try:
            address = f"{self._lab.url}/doc/workspaces/{uuid.uuid4().hex}/tree/{quote(name)}?reset"
            yield NotebookPage(context.new_page(), address)
        finally:
            context.close()


def render(browser: Browser, notebook: Path, picture: Path, dark: bool = False) -> None:
    """Draw a stored notebook as one tall picture: what a reader without a kernel sees."""
    exporter = HTMLExporter(template_name="lab", theme="dark" if dark else "light")
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    html, _ = exporter.from_filename(str(notebook))
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    with contextlib.closing(context), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(html, encoding="utf-8")
        page = context.new_page()
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture, full_page=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=render.__doc__)
    parser.add_argument("command", choices=["render"])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with chromium() as browser:
        render(browser, options.notebook, options.picture, options.dark)


if __name__ == "__main__":
    main()
