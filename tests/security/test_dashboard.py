"""The dashboard: what its cookie opens and what not, who gets one, and what the page may do in a browser."""

import re
from datetime import timedelta

import pytest

from kvloom import limits
from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.call import KEY, OPEN, SESSION
from kvloom.daemon.caller import Scope
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.dashboard.gate import cookie_name
from kvloom.daemon.http_api import HttpApi
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.metrics import Metrics
from kvloom.daemon.server import open_daemon

NOBODY = "Authorization: Bearer kvl_0123456789ab_" + "a" * 43
KEY_OF_NOTHING = "0" * 64


def routes(edge):
    running = edge.running
    metrics = Metrics(lambda: running.service.stats(running.authenticator.local))
    return HttpApi(running.service, metrics, running.authenticator).routes


def target(path):
    return path.replace("{key}", KEY_OF_NOTHING).replace("{digest}", KEY_OF_NOTHING).replace("{lease}", "0" * 32)


def bearer(text):
    return f"Authorization: Bearer {text}"


async def log_in(edge, key=None):
    """The Cookie header of a session that the key has begun."""
    answer = await edge.ask("POST", "/dashboard/session", key=key or edge.key)
    assert answer.status == 201
    return "Cookie: " + re.search(r"(?im)^set-cookie: ([^;]+);", answer.head)[1]


async def state(edge, cookie):
    answer = await edge.ask("GET", "/dashboard/state", cookie, key=None)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_the_cookie_is_no_key_and_is_for_this_site_and_the_server_only(edge):
    answer = await edge.ask("POST", "/dashboard/session")
    line = re.search(r"(?im)^set-cookie: (.*)\r$", answer.head)[1]
    value, *attributes = line.split("; ")
    port = edge.running.endpoint.port
    assert value.startswith(f"{cookie_name(port)}=")
    assert set(attributes) == {
        "HttpOnly", "SameSite=Strict", "Path=/dashboard", f"Max-Age={limits.SESSION_SECONDS_MAX}",
    }  # fmt: skip
    assert edge.key.split()[-1] not in answer.head + answer.body.decode()
    assert edge.key.split()[-1].partition("local_")[2][:20] not in line
    assert answer.json() == {"tenant": "default", "scopes": ["read", "write", "admin"], "seconds": 43200}
    assert "Cache-Control: no-store" in answer.head


async def test_the_cookie_opens_the_dashboards_own_routes_and_nothing_else(edge):
    cookie = await log_in(edge)
    for route in routes(edge):
        answer = await edge.ask(route.method, target(route.path), cookie, key=None)
        if route.needs is SESSION:
            assert answer.status in (200, 204, 404), route
            cookie = await log_in(edge)  # one of them ended it
        elif route.needs is not OPEN:
            assert answer.status == 401, route
    for method, path in (("GET", "/nowhere"), ("PUT", "/dashboard/state"), ("POST", "/dashboard")):
        assert (await edge.ask(method, path, cookie, key=None)).status == 401


async def test_only_a_get_and_the_logout_need_no_more_than_the_cookie(edge):
    """What changes anything needs a header, which no other site can have a browser send."""
    own = [route for route in routes(edge) if route.path.startswith("/dashboard")]
    assert len(own) == 6
    assert {route.method for route in own if route.needs is SESSION} == {"GET", "DELETE"}
    assert [route.path for route in own if route.method == "DELETE"] == ["/dashboard/session"]
    assert [route.method for route in own if route.needs is KEY] == ["POST"]


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "0123456789abcdef.", "0123456789abcdef." + "a" * 43, "é" * 60, "a" * 5000],
)
async def test_a_cookie_that_names_no_session_opens_nothing(edge, cookie):
    name = cookie_name(edge.running.endpoint.port)
    for path in ("/dashboard/state", f"/dashboard/chunks/{KEY_OF_NOTHING}"):
        answer = await edge.ask("GET", path, f"Cookie: {name}={cookie}", key=None)
        assert (answer.status, answer.json()["error"]) == (401, "unauthenticated")
        assert answer.closed


async def test_logging_out_ends_the_session_and_has_the_browser_forget_it(edge):
    cookie, other = await log_in(edge), await log_in(edge)
    answer = await edge.ask("DELETE", "/dashboard/session", cookie, key=None)
    assert answer.status == 204
    assert "Max-Age=0" in answer.head
    assert (await edge.ask("GET", "/dashboard/state", cookie, key=None)).status == 401
    assert (await edge.ask("GET", "/dashboard/state", other, key=None)).status == 200


async def test_a_session_ends_with_its_key(edge):
    made = await edge.grant("acme", Scope.READ)
    cookie = await log_in(edge, bearer(made.text))
    await state(edge, cookie)
    edge.credentials.revoke(made.key.key_id, utc_now())
    await edge.reload()
    assert (await edge.ask("GET", "/dashboard/state", cookie, key=None)).status == 401


async def test_a_key_that_has_expired_begins_no_session(edge):
    made = await edge.grant("acme", Scope.READ, expires=utc_now() - timedelta(seconds=1))
    assert (await edge.ask("POST", "/dashboard/session", key=bearer(made.text))).status == 401


async def test_a_key_that_may_see_nothing_begins_no_session(edge):
    made = await edge.grant("acme", Scope.WRITE)
    answer = await edge.ask("POST", "/dashboard/session", key=bearer(made.text))
    assert (answer.status, answer.json()["error"]) == (403, "forbidden")
    assert "set-cookie" not in answer.head.lower()
    assert (await edge.ask("GET", "/dashboard/state", key=bearer(made.text))).status == 403


async def test_a_tenant_sees_its_own_and_an_operator_all_but_the_chunks(edge, container_bytes):
    acme, other, ops = [
        await edge.grant(tenant, *scopes)
        for tenant, scopes in (("acme", (Scope.READ, Scope.WRITE)), ("other", ()), ("ops", (Scope.ADMIN,)))
    ]
    keys = {}
    for made in (acme, other):
        key = made.key.key_id.encode().ljust(32, b"x")
        keys[made.key.tenant] = key.hex()
        data = container_bytes([EXACT], content_key=key)
        assert (await edge.ask("PUT", f"/chunks/{key.hex()}", body=data, key=bearer(made.text))).status == 201
    mine = await state(edge, await log_in(edge, bearer(acme.text)))
    assert (mine["tenant"], mine["load"], mine["network"]) == ("acme", None, None)
    assert [row["name"] for row in mine["namespaces"]] == ["acme"]
    assert {row["tenant"] for row in mine["slowest"]} == {"acme"}
    assert [item["key"] for item in mine["recent"]] == [keys["acme"]]
    assert mine["history"]["tiers"] == []
    assert {row["hit_share"] for row in mine["tiers"]} == {None}
    assert "other" not in str(mine)
    cookie = await log_in(edge, bearer(ops.text))
    everything = await state(edge, cookie)
    assert {"acme", "other"} <= {row["name"] for row in everything["namespaces"]}
    assert {"acme", "other"} <= {row["tenant"] for row in everything["slowest"]}
    assert everything["recent"] == []
    answer = await edge.ask("GET", f"/dashboard/chunks/{keys['acme']}", cookie, key=None)
    assert (answer.status, answer.json()["error"]) == (403, "forbidden")


async def test_another_tenants_chunk_is_inspected_as_one_that_is_not_there(edge, container_bytes):
    mine, theirs = [await edge.grant(tenant, Scope.READ, Scope.WRITE) for tenant in ("mine", "theirs")]
    key = b"k" * 32
    data = container_bytes([EXACT], content_key=key)
    await edge.ask("PUT", f"/chunks/{key.hex()}", body=data, key=bearer(theirs.text))
    cookie = await log_in(edge, bearer(mine.text))
    foreign = await edge.ask("GET", f"/dashboard/chunks/{key.hex()}", cookie, key=None)
    absent = await edge.ask("GET", f"/dashboard/chunks/{b'z'.hex() * 32}", cookie, key=None)
    assert (foreign.status, absent.status) == (404, 404)
    assert foreign.json()["message"].replace("6b", "7a") == absent.json()["message"]


async def test_logins_are_limited_and_who_waits_is_told_how_long(edge):
    for _ in range(limits.LOGIN_FAILURES_MAX):
        assert (await edge.ask("POST", "/dashboard/session", key=NOBODY)).status == 401
    for key in (NOBODY, edge.key):
        answer = await edge.ask("POST", "/dashboard/session", key=key)
        assert (answer.status, answer.json()["error"]) == (429, "too_many_attempts")
        wait = int(re.search(r"(?im)^retry-after: (\d+)\r$", answer.head)[1])
        assert 0 < wait <= limits.LOGIN_WINDOW_SECONDS
    assert (await edge.ask("GET", "/stats")).status == 200


async def test_nothing_on_the_page_may_come_from_elsewhere_or_run_inline(edge):
    page = await edge.ask("GET", "/dashboard", key=None)
    assert page.status == 200
    policy = re.search(r"(?im)^content-security-policy: (.*)\r$", page.head)[1].split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.search(r"unsafe|\*|https?:|data:|blob:", " ".join(policy))
    text = page.body.decode()
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|https?://|//[a-z]", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


async def test_every_answer_of_the_dashboard_says_what_a_browser_must_not_do_with_it(edge):
    cookie = await log_in(edge)
    files = re.findall(r'"(/dashboard/static/[^"]+)"', (await edge.ask("GET", "/dashboard")).body.decode())
    assert len(files) == 3
    for path in ("/dashboard", *files, "/dashboard/state"):
        answer = await edge.ask("GET", path, cookie, key=None)
        assert answer.status == 200, path
        for line in (
            "X-Content-Type-Options: nosniff", "X-Frame-Options: DENY", "Referrer-Policy: no-referrer",
            "Cross-Origin-Resource-Policy: same-origin", "Content-Security-Policy: default-src 'none'",
        ):  # fmt: skip
            assert line in answer.head, (path, line)
        assert ("Cache-Control: no-store" if path.endswith("state") else "Cache-Control: no-cache") in answer.head


@pytest.mark.parametrize(
    "name",
    ["..%2fpages.py", "%2e%2e/pages.py", "pages.py", "../pages.py", "index.html%00", "static/style.css", ".hidden", ""],
)
async def test_files_are_those_of_the_page_and_no_others(edge, name):
    answer = await edge.ask("GET", f"/dashboard/static/{name}")
    assert answer.status in (400, 404), name
    assert b"import" not in answer.body


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/dashboard/session"), ("DELETE", "/dashboard/session"), ("GET", "/dashboard/static/main.js")],
)
async def test_the_page_itself_may_load_its_scripts_and_log_in_and_out_and_no_other_page_may(edge, method, path):
    host = f"localhost:{edge.running.endpoint.port}"
    for origin, allowed in (
        (f"http://{host}", True),
        (f"https://{host}", False),
        ("http://localhost", False),
        ("http://localhost:1", False),
        (f"http://evil.{host}", False),
        ("null", False),
    ):
        answer = await edge.ask(method, path, f"Origin: {origin}", "Sec-Fetch-Site: same-origin", host=host)
        assert (answer.status != 403) is allowed, origin
    answer = await edge.ask(method, path, f"Origin: http://{host}", "Sec-Fetch-Site: same-site", host=host)
    assert answer.status == 403
    twice = await edge.ask(method, path, f"Origin: http://{host}", f"Origin: http://{host}", host=host)
    assert twice.status == 403


async def test_a_link_from_another_site_leads_to_the_page_and_to_nothing_else(edge):
    cookie = await log_in(edge)
    clicked = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")
    assert (await edge.ask("GET", "/dashboard", *clicked, key=None)).status == 200
    for path in ("/dashboard/state", "/dashboard/static/main.js", f"/dashboard/chunks/{KEY_OF_NOTHING}", "/chunks"):
        assert (await edge.ask("GET", path, cookie, *clicked)).status == 403
    framed = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe")
    assert (await edge.ask("GET", "/dashboard", *framed, key=None)).status == 403


async def test_where_nobody_needs_a_key_nobody_is_asked_for_one_whatever_cookie_he_has(edge, tmp_path):
    text = ConfigText(port="0", data_dir=str(tmp_path / "open"), memory="64MiB", ssd="off", http_auth="off")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        edge = type(edge)(running, text.directory())
        name = cookie_name(running.endpoint.port)
        for cookie in ((), (f"Cookie: {name}=0123456789abcdef.{'a' * 43}",)):
            for method, path, status in (("GET", "/dashboard/state", 200), ("DELETE", "/dashboard/session", 204)):
                assert (await edge.ask(method, path, *cookie, key=None)).status == status
            wrong = await edge.ask("GET", "/dashboard/state", *cookie, key=NOBODY)
            assert wrong.status == 401
