"""A headless Chromium driven over its DevTools protocol: one page at a time, and all that it complained about."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

START_SECONDS_MAX = 90
WAIT_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 60
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0",
)  # fmt: skip


def chromium() -> str:
    """The program, or a skipped test."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs chromium (Debian: chromium)")
    return found


class Page:
    """One page. What it asked for and whatever went wrong in it is collected."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._session: str | None = None
        self.requests: list[str] = []
        """The URL of every request."""
        self.complaints: list[str] = []
        """Exceptions nobody caught, and what the browser wrote to its log: refused by the policy, say."""

    async def call(self, method: str, **parameters) -> dict:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message if self._session is None else {**message, "sessionId": self._session})
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await answer

    async def listen(self) -> None:
        """Take answers and events, until the browser is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if answer.cancelled():
                    continue
                if "error" in said:
                    answer.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])
            else:
                self._note(said["method"], said["params"])

    def _note(self, method: str, about: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and about["entry"]["source"] != "network":  # statuses are the page's business
            self.complaints.append(f"{about['entry']['source']}: {about['entry']['text']}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.complaints.append(str(about["args"]))

    async def attach(self) -> None:
        """A new page."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await self.call(f"{domain}.enable")

    async def show(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """As on a screen of that size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)

    async def go(self, url: str) -> None:
        """Open ``url``."""
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result

    async def evaluate(self, expression: str):
        """The value of a JavaScript expression, or of the promise that it is."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait(self, expression: str):
        """Ask again and again until the expression is true of the page; what it is then."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while not (value := await self.evaluate(f"(() => {{ try {{ return {expression} }} catch {{}} }})()")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                return value
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{self.complaints}\n{text}") from None

    async def text(self, selector: str) -> str:
        """The text of an element as it is shown, blanks as one."""
        return await self.evaluate(
            f"document.querySelector({json.dumps(selector)}).innerText.replace(/\\s+/gu, ' ').trim()"
        )

    async def fill(self, selector: str, text: str) -> None:
        """Type ``text`` into a field, in place of what is there."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press and release a key of the keyboard."""
        text = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    async def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        where = await self.evaluate(
            f"(() => {{ const item = document.querySelector({json.dumps(selector)}); item.scrollIntoView();"
            "const box = item.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        data = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(data["data"]))


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A browser with a profile of its own and one page, ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="kvloom-browser", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank",
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                url = await _address(process.stderr)
            draining = asyncio.create_task(process.stderr.read())
            async with aiohttp.ClientSession() as client, client.ws_connect(url, max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                try:
                    await page.attach()
                    yield page
                finally:
                    listening.cancel()
                    draining.cancel()
                    await asyncio.wait((listening, draining))
        finally:
            _kill(process)
            await process.wait()


async def _address(stderr: asyncio.StreamReader) -> str:
    said = []
    async for line in stderr:
        said.append(line.decode(errors="replace"))
        if "DevTools listening on " in said[-1]:
            return said[-1].partition("DevTools listening on ")[2].strip()
    raise AssertionError(f"chromium did not start: {''.join(said)[-2000:]}")


def _kill(process: asyncio.subprocess.Process) -> None:
    """It and the processes that it has started, which are one group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
