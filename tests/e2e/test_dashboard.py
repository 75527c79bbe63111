"""The dashboard in a real browser, over real daemons: hits, misses, a tier and a daemon that go away."""

import asyncio
import json
import os
import re

import pytest
from browser import browsing, chromium
from network_servers import free_ports

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DaemonNote
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.caller import Scope
from kvloom.daemon.credentials import new_key
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.kvstore.outcome import Hit

pytestmark = pytest.mark.slow
PROFILE = b"a profile of these tests"
FLAGS = ("--memory", "16MiB", "--ssd", "64MiB")
LAYERS = 12

CONTRAST = """
(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.slice(0, 3).map((c) => linear(c / 255))
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, noscript")) continue;
    const style = getComputedStyle(node);
    const text = light(rgb(node instanceof SVGElement ? style.fill : style.color));
    const behind = light(ground(node));
    const ratio = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${walk.currentNode.data.trim().slice(0, 40)}`);
  }
  return bad;
})()
"""
CUT_OFF = """
[...document.querySelectorAll(".scroll")]
  .filter((item) => item.checkVisibility() && item.scrollWidth > item.clientWidth + 1)
  .map((item) => item.innerText)
"""
"""Tables that would have to be moved sideways."""


@pytest.fixture
async def page():
    chromium()
    async with browsing() as page:
        await page.show()
        yield page
        assert page.complaints == []


async def enter(page, daemon, key=None):
    """Open the dashboard and log in with a key, or with the user's token."""
    await page.go(f"http://{daemon.endpoint}/dashboard")
    await page.wait("!document.querySelector('#login').hidden")
    await page.fill("#login-key", key or daemon.key["Authorization"].split()[-1])
    await page.press("Enter")
    await page.wait("!document.querySelector('#board').hidden")


def use(daemon, container_bytes, count=4, misses=2):
    """Store chunks with two lossy levels and a lossless one, read each once, and look for some that are not there."""
    keys = [os.urandom(32) for _ in range(count)]
    with daemon.client() as client:
        digest = client.put_profile(PROFILE)
        for key in keys:
            client.put(
                key,
                container_bytes(
                    (DRAFT, ECONOMY, EXACT), content_key=key, layers=LAYERS, block_layers=4, tokens=64,
                    segment_bytes=20_000, profile_digest=digest,
                ),
            )  # fmt: skip
        assert all(isinstance(client.get(key), Hit) for key in keys)
        for _ in range(misses):
            client.get(os.urandom(32))
    return [key.hex() for key in keys]


def use_grpc(daemon, container_bytes):
    key = os.urandom(32)
    address = f"grpc://127.0.0.1:{DaemonNote.read(daemon.data_dir).grpc_port}"
    with KvloomClient(address, data_dir=daemon.data_dir, local=False) as client:
        client.put(key, container_bytes((EXACT,), content_key=key))
        assert isinstance(client.get(key), Hit)


def new_tenant(data_dir, tenant, *scopes):
    """A key that a daemon over ``data_dir`` will know."""
    made = new_key(os.urandom(38), tenant=tenant, scopes=scopes, now=utc_now())
    data_dir.mkdir(mode=0o700)
    CredentialsFile(data_dir / "credentials.toml").add(made)
    return made.text


async def test_a_key_opens_it_and_logging_out_closes_it(page, start_daemon):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    origin = f"http://{daemon.endpoint}"
    await page.go(f"{origin}/dashboard")
    await page.wait("!document.querySelector('#login').hidden")
    await page.fill("#login-key", "kvl_0123456789ab_" + "a" * 43)
    await page.press("Enter")
    await page.wait("document.querySelector('#login-error').innerText.includes('does not hold')")
    assert await page.evaluate("document.querySelector('#board').hidden")
    token = daemon.key["Authorization"].split()[-1]
    await page.fill("#login-key", token)
    await page.press("Enter")
    await page.wait("document.querySelector('#phase').innerText === 'ready'")
    (cookie,) = (await page.call("Network.getCookies", urls=[f"{origin}/dashboard"]))["cookies"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/dashboard")
    assert token not in cookie["value"]
    assert (await page.call("Network.getCookies", urls=[f"{origin}/stats"]))["cookies"] == []
    assert await page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
    assert token not in await page.evaluate("document.documentElement.outerHTML")
    await page.click("#logout")
    await page.wait("!document.querySelector('#login').hidden")
    assert await page.evaluate("fetch('/dashboard/state').then((answer) => answer.status)") == 401
    assert {url for url in page.requests if not url.startswith(f"{origin}/dashboard")} == set()


async def test_traffic_is_seen_as_it_is(page, start_daemon, container_bytes):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS, "--grpc-port", "0")
    await enter(page, daemon)
    assert "no traffic" in await page.evaluate("document.querySelector('#traffic-chart').textContent")
    assert await page.text("#slow") == "No request in the last 5 minutes."
    keys = await asyncio.to_thread(use, daemon, container_bytes, 6, 2)
    await page.wait("document.querySelector('#figures').innerText.includes('75.0\\u00a0% since the start')")
    await page.wait("document.querySelector('#slow tbody').innerText.includes('put chunk')")
    slow = await page.text("#slow")
    assert "get chunk memory" in slow
    assert re.search(r"[0-9a-f]{16}", slow)
    await page.wait("document.querySelector('#tiers tbody tr').innerText.includes('6')")
    assert "ssd" in await page.text("#tiers")
    assert (await page.text("#namespaces tbody")).startswith("default")
    await page.wait("document.querySelectorAll('#recent button').length === 6")
    await page.click(f"#recent button[data-key='{keys[0]}']")
    await page.wait("document.querySelectorAll('.heat tbody tr').length === 3")
    assert await page.evaluate("[...document.querySelectorAll('.strip svg')].map((item) => item.children.length)") == [
        3, 3, LAYERS,
    ]  # fmt: skip
    said = await page.text("#chunk")
    assert keys[0] in said
    assert "memory, ssd" in said
    assert "64 from position 0" in said
    await asyncio.to_thread(use_grpc, daemon, container_bytes)
    await page.wait("document.querySelector('#slow tbody').innerText.includes('gRPC')")
    for wrong, answer in (("f" * 64, "No chunk with this key"), ("xyz", "64 hexadecimal digits")):
        await page.fill("#chunk-key", wrong)
        await page.press("Enter")
        await page.wait(f"document.querySelector('#chunk-error').innerText.includes('{answer}')")
    await page.fill("#chunk-key", keys[1])
    await page.press("Enter")
    await page.wait(f"document.querySelector('#chunk').innerText.includes('{keys[1]}')")


async def test_what_the_planner_chose_and_why_is_shown_once_it_was_asked(page, start_daemon, container_bytes):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await enter(page, daemon)
    await page.wait("document.querySelector('#tiers tbody tr') !== null")
    assert await page.evaluate("document.querySelector('#planner-panel').hidden")
    keys = await asyncio.to_thread(use, daemon, container_bytes)
    question = {"engine": "vllm-0", "keys": [*keys, "0" * 64], "prompt_tokens": 2000}
    answer = await asyncio.to_thread(daemon.ask, "POST", "/plan", json.dumps(question).encode())
    assert answer.status == 200, answer.body
    decided = answer.json()["decisions"]
    await page.wait("document.querySelector('#planner-sum').innerText === '1 plan'")
    shown = await page.text("#decisions tbody")
    assert "computed not stored 20.0 %" in shown
    assert await page.evaluate("document.querySelectorAll('#decisions tbody tr').length") == len(
        {(item["action"], item["reason"]) for item in decided}
    )
    assert "vllm-0" in await page.text("#plans tbody")
    loaded = sum(item["action"] == "load" for item in decided)
    assert f"{loaded} of 5" in await page.text("#plans tbody")
    for width in (1280, 400):
        await page.show(width=width)
        assert await page.evaluate(CUT_OFF) == []
        assert await page.evaluate(CONTRAST) == []


async def test_answers_that_were_checked_are_shown_and_those_that_miss_their_target(page, start_daemon):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await enter(page, daemon)
    await page.wait("document.querySelector('#tiers tbody tr') !== null")
    assert await page.evaluate("document.querySelector('#quality-panel').hidden")

    async def report(**check):
        body = {"engine": "rag", "qualities": [{"kl_max": 0.05, "agreement_min": 0.5, **check}] * 8}
        answer = await asyncio.to_thread(daemon.ask, "POST", "/report", json.dumps(body).encode())
        assert (answer.status, answer.json()["accepted"]) == (200, 8), answer.body

    await report(kl=0.02, agrees=True)
    await page.wait("document.querySelector('#quality-sum').innerText === '8 answers'")
    assert "0.0200 nats" in await page.text("#quality tbody")
    await report(kl=0.3, agrees=False)
    await page.wait("document.querySelector('#quality-sum').innerText.includes('miss the quality')")
    assert "50.0 %" in await page.text("#quality tbody")
    for width in (1280, 400):
        await page.show(width=width)
        assert await page.evaluate(CUT_OFF) == []
        assert await page.evaluate(CONTRAST) == []


async def test_a_page_opened_later_shows_what_was_before(page, start_daemon, container_bytes):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await asyncio.to_thread(use, daemon, container_bytes)
    await enter(page, daemon)
    await page.wait("document.querySelector('#hits-chart .plot .line.s0').getAttribute('d') !== ''")
    await page.wait("document.querySelector('#traffic-chart .none') === null")
    label = await page.evaluate("document.querySelector('#hits-chart .plot').getAttribute('aria-label')")
    assert "Hit rate, last 1" in label
    await page.evaluate("document.querySelector('#hits-chart .plot').focus()")
    await page.press("ArrowLeft")
    await page.press("ArrowLeft")
    await page.wait("document.querySelector('#hits-chart .moment').innerText.endsWith(' ago')")
    assert "answered" in await page.evaluate("document.querySelector('#hits-chart [role=status]').textContent")
    await page.press("Escape")
    assert await page.text("#hits-chart .moment") == ""


async def test_a_network_tier_that_goes_away_is_seen_and_so_is_its_return(page, start_daemon, start_valkey):
    server = await asyncio.to_thread(start_valkey)
    network = f"valkey://127.0.0.1:{server.port}/dashboard"
    daemon = await asyncio.to_thread(start_daemon, *FLAGS, "--network", network)
    await enter(page, daemon)
    await page.wait("document.querySelector('.verdict').innerText.includes('valkey answers')")
    assert "No error since the daemon started" in await page.text("#network")
    await asyncio.to_thread(server.kill)

    def miss():
        with daemon.client() as client:
            client.get(os.urandom(32))

    await asyncio.to_thread(miss)
    await page.wait("document.querySelector('.verdict').innerText.includes('valkey is away')")
    said = await page.text("#network")
    assert re.search(r"Last error, \d+ m?s?i?n? ?ago, in get: .*valkey", said), said
    assert "Found away 1 time" in said
    assert "Unavailable(" not in said
    await asyncio.to_thread(server.start)
    await page.wait("document.querySelector('.verdict').innerText.includes('valkey answers')")
    assert "Last error" in await page.text("#network")


async def test_a_daemon_that_goes_away_is_said_so_and_one_that_is_back_asks_for_the_key(page, start_daemon):
    port = str(free_ports(1)[0])
    daemon = await asyncio.to_thread(start_daemon, *FLAGS, "--port", port)
    await enter(page, daemon)
    await page.wait("document.querySelector('#updated').innerText.startsWith('Updated')")
    assert await page.evaluate("document.querySelector('#banner').hidden")
    await asyncio.to_thread(daemon.kill)
    await page.wait("document.querySelector('#banner').innerText.includes('Daemon not reachable')")
    assert "Next try in" in await page.text("#banner")
    assert "Figures are from" in await page.text("#banner")
    assert await page.text("#phase") == "not reachable"
    assert await page.evaluate("document.querySelectorAll('#tiers tbody tr').length") == 2
    await asyncio.to_thread(daemon.start)
    await page.click("#banner-retry")
    await page.wait("document.querySelector('#login-error').innerText.includes('session has ended')")


async def test_a_tenant_sees_what_is_his(page, start_daemon, container_bytes, tmp_path):
    key = new_tenant(tmp_path / "data", "acme", Scope.READ)
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await asyncio.to_thread(use, daemon, container_bytes)
    await enter(page, daemon, key)
    await page.wait("document.querySelector('#who').innerText === 'namespace acme'")
    assert await page.text("#namespaces tbody th") == "acme"
    shown = await page.text("#board")
    for hidden in ("Bandwidth of each link", "Network tier", "Inside now", "default"):
        assert hidden not in shown
    assert await page.text("#slow") == "No request in the last 5 minutes."


async def test_it_is_readable_at_every_width_in_light_and_dark_and_by_name(page, start_daemon, container_bytes):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await page.show(width=400, dark=True)
    await page.go(f"http://{daemon.endpoint}/dashboard")
    await page.wait("!document.querySelector('#login').hidden")
    assert await page.evaluate(CONTRAST) == []
    keys = await asyncio.to_thread(use, daemon, container_bytes)
    await enter(page, daemon)
    await page.wait("document.querySelectorAll('#recent button').length > 0")
    await page.click(f"#recent button[data-key='{keys[0]}']")
    await page.wait("document.querySelectorAll('.heat tbody tr').length === 3")
    for width in (1280, 400):
        for dark in (False, True):
            await page.show(width=width, dark=dark)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(CUT_OFF) == []
            assert await page.evaluate(CONTRAST) == []
    nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    named = ("button", "textbox", "image", "table", "columnheader", "rowheader", "heading", "link")
    nameless = [
        node for node in nodes
        if not node["ignored"] and node["role"]["value"] in named and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert nameless == []
    assert {node["role"]["value"] for node in nodes} >= {"button", "textbox", "image", "table", "rowheader"}


async def test_numbers_have_units_and_say_neither_more_nor_less_than_there_is(page, start_daemon):
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    await page.go(f"http://{daemon.endpoint}/dashboard")
    await page.wait("!document.querySelector('#login').hidden")
    for call, shown in {
        "bytes(0)": "0 B", "bytes(999)": "999 B", "bytes(1536)": "1.50 KiB", "bytes(5e9)": "4.66 GiB",
        "byteRate(null)": "–", "byteRate(2 ** 20)": "1.00 MiB/s", "perSecond(0)": "0/s", "perSecond(0.004)": "<0.01/s",
        "perSecond(12345)": "12,345/s", "percent(null)": "–", "percent(1)": "100 %", "percent(0.99999)": "99.9 %",
        "percent(0)": "0 %", "percent(0.00001)": "0.1 %", "duration(0.00042)": "0.42 ms", "duration(59)": "59.0 s",
        "duration(200)": "3 min 20 s", "ago(0)": "0 s", "ago(90000, 2)": "1 d 1 h", "many(1, 'lease')": "1 lease",
    }.items():  # fmt: skip
        said = await page.evaluate(f"import('/dashboard/static/format.js').then((module) => module.{call})")
        assert said.replace("\u00a0", " ") == shown, call
    smooth = "import('/dashboard/static/history.js').then((module) => module.smooth([0, 2, 4, 13], {}))"
    assert await page.evaluate(smooth.format("[1, null, 0, null], [3, 0, 1, 0]")) == [1, 1, 0.75, 0]
    assert await page.evaluate(smooth.format("[4, 2, 3, 9]")) == [4, 3, 3, 6]


async def test_a_script_that_is_not_the_pages_own_does_not_run(start_daemon):
    chromium()
    daemon = await asyncio.to_thread(start_daemon, *FLAGS)
    async with browsing() as page:
        await page.go(f"http://{daemon.endpoint}/dashboard")
        await page.wait("!document.querySelector('#login').hidden")
        refused = """
            try {
              const item = document.createElement('script');
              item.text = 'window.ran = 1';
              document.body.append(item);
            } catch (error) { String(error) }
        """
        assert "TrustedScript" in await page.evaluate(refused)
        assert await page.evaluate("window.ran") is None
        assert "TrustedHTML" in await page.evaluate("try { document.body.innerHTML = '<b>' } catch (e) { String(e) }")
        assert (
            await page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => error.name)") == "TypeError"
        )
        assert any("Content Security Policy" in line for line in page.complaints)
