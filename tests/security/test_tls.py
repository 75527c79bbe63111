"""TLS: real handshakes with certificates made for the test, and what a daemon needs to listen beyond loopback."""

import asyncio
import contextlib
import os
import re
import ssl

import pytest
from certificates import HOUR, NOW, Authority

from kvloom import limits
from kvloom.clients import AsyncKvloomClient, KvloomClient, Trust
from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.caller import Scope
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.credentials import new_key
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import open_daemon
from kvloom.errors import ConfigError, DaemonUnavailable
from kvloom.kvstore.outcome import Hit


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def server(authority):
    return authority.sign("server", "127.0.0.1", "kv.example")


@pytest.fixture
def open_tls(tmp_path, server):
    """A function that opens a daemon with the certificate."""

    def open_it(host="127.0.0.1", **options):
        text = ConfigText(
            host=host,
            port="0",
            data_dir=str(tmp_path / "data"),
            memory="64MiB",
            ssd="off",
            tls_certificate=str(server.certificate),
            tls_key=str(server.key),
            **options,
        )
        return open_daemon(resolve_config(text, probe_machine(text.directory())))

    return open_it


def add_key(tmp_path, *scopes):
    made = new_key(os.urandom(38), tenant="acme", scopes=scopes or (Scope.READ, Scope.WRITE), now=utc_now())
    CredentialsFile(tmp_path / "data" / "credentials.toml").add(made)
    return made.text


def use(endpoint, container_bytes, **options):
    """Put and get through a blocking client."""
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, segment_bytes=200_000)
    with KvloomClient(endpoint.url, local=False, **options) as client:
        client.put(key, data)
        assert client.get(key).value.data == data
    return key


async def test_both_clients_talk_tls_and_verify_it(open_tls, authority, container_bytes, tmp_path, monkeypatch):
    trust = Trust(authority.ca)
    async with open_tls() as running:
        assert running.endpoint.secure
        options = {"data_dir": tmp_path / "data", "local": False}
        key = await asyncio.to_thread(
            lambda: use(running.endpoint, container_bytes, trust=trust, data_dir=tmp_path / "data")
        )
        async with AsyncKvloomClient(running.endpoint.url, trust=trust, **options) as client:
            assert isinstance(await client.get(key), Hit)
        monkeypatch.setenv("KVLOOM_CA", str(authority.ca))
        monkeypatch.setenv("KVLOOM_URL", running.endpoint.url)
        async with AsyncKvloomClient(**options) as client:
            assert isinstance(await client.get(key), Hit)


@pytest.mark.parametrize("wrong", ["authority", "name", "expired", "no tls"])
async def test_a_server_that_is_not_the_one_meant_gets_no_request(tmp_path, authority, wrong):
    """The key is in the first byte of the request that such a server must never see."""
    pair = authority.sign(
        "other",
        "other.example" if wrong == "name" else "127.0.0.1",
        expires=NOW - HOUR if wrong == "expired" else NOW + HOUR,
    )
    seen = []

    async def listen(reader, writer):
        with contextlib.suppress(OSError):
            seen.append(await reader.read(1000))
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    listener = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=None if wrong == "no tls" else context)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    trust = Trust((Authority(tmp_path, "stranger") if wrong == "authority" else authority).ca)
    says = "broke off|no daemon answers" if wrong == "no tls" else "certificate of 127.0.0.1:.* does not hold"

    def ask():
        with KvloomClient(url, api_key="kvl_secret", trust=trust) as client, pytest.raises(DaemonUnavailable) as caught:
            client.health()
        return str(caught.value)

    assert re.search(says, await asyncio.to_thread(ask))
    async with AsyncKvloomClient(url, api_key="kvl_secret", trust=trust) as client:
        with pytest.raises(DaemonUnavailable, match=says if wrong != "no tls" else "daemon"):
            await client.health()
    listener.close()
    assert not any(b"kvl_secret" in data for data in seen)


async def test_a_plain_request_to_a_tls_port_gets_nothing(open_tls):
    async with open_tls() as running:
        reader, writer = await asyncio.open_connection(running.endpoint.host, running.endpoint.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not await reader.read(1000)
        writer.close()


async def test_old_protocols_are_refused(open_tls, authority):
    async with open_tls() as running:
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(running.endpoint.host, running.endpoint.port, ssl=context)


async def test_with_a_client_ca_a_key_alone_is_not_enough(open_tls, authority, container_bytes, tmp_path):
    known, stranger = authority.sign("client"), Authority(tmp_path, "stranger").sign("intruder")
    key = add_key(tmp_path)
    async with open_tls(tls_client_ca=str(authority.ca)) as running:
        shown = Trust(authority.ca, known.certificate, known.key)
        await asyncio.to_thread(lambda: use(running.endpoint, container_bytes, api_key=key, trust=shown))
        for trust in (Trust(authority.ca), Trust(authority.ca, stranger.certificate, stranger.key)):

            def ask(trust=trust):
                with KvloomClient(running.endpoint.url, api_key=key, trust=trust, local=False) as client:
                    client.stats()

            with pytest.raises(DaemonUnavailable):
                await asyncio.to_thread(ask)


async def test_beyond_loopback_it_serves_keys_only(open_tls, authority, container_bytes, tmp_path):
    key = add_key(tmp_path)
    async with open_tls("0.0.0.0") as running:
        assert (running.endpoint.host, running.endpoint.secure) == ("127.0.0.1", True)
        assert not (tmp_path / "data" / "http.token").exists()
        trust = Trust(authority.ca)
        await asyncio.to_thread(lambda: use(running.endpoint, container_bytes, api_key=key, trust=trust))
        context = ssl.create_default_context(cafile=str(authority.ca))
        reader, writer = await asyncio.open_connection("127.0.0.1", running.endpoint.port, ssl=context)
        writer.write(b"GET /chunks HTTP/1.1\r\nHost: kv.example\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")
        writer.close()


@pytest.mark.parametrize("keys", ["none", "revoked", "expired"])
async def test_beyond_loopback_it_does_not_start_without_a_key_that_holds(open_tls, tmp_path, keys):
    if keys != "none":
        now = utc_now()
        made = new_key(
            os.urandom(38), tenant="a", scopes=[Scope.READ], now=now, expires=now if keys == "expired" else None
        )
        file = CredentialsFile(tmp_path / "data" / "credentials.toml")
        file.add(made)
        if keys == "revoked":
            file.revoke(made.key.key_id, now)
    with pytest.raises(ConfigError, match=r"no key in .* holds: make one with 'kvloom keys create --tenant NAME'"):
        async with open_tls("0.0.0.0"):
            pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "0.0.0.0"}, "set tls_certificate and tls_key to PEM files, and make keys with 'kvloom keys create'"),
        ({"host": "::"}, "set tls_certificate and tls_key"),
        ({"host": "example.org"}, "neither an IP address nor localhost"),
        ({"tls_key": "k"}, "tls_key is set, but TLS needs both"),
        ({"tls_client_ca": "c"}, "tls_client_ca is set, but TLS needs both"),
        (
            {"host": "10.0.0.1", "tls_certificate": "c", "tls_key": "k", "http_auth": "off"},
            "http_auth cannot be off there",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, options, says):
    with pytest.raises(ConfigError) as caught:
        resolve_config(ConfigText(data_dir=str(tmp_path), **options), probe_machine(tmp_path))
    assert says in str(caught.value)


async def test_files_that_cannot_be_used_are_named(open_tls, server, tmp_path):
    server.key.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"TLS files cannot be used \(.*server.crt, .*server.key"):
        async with open_tls():
            pass
    with pytest.raises(ConfigError, match=r"certificates cannot be used \(.*nowhere"):
        KvloomClient("https://127.0.0.1:1", trust=Trust(tmp_path / "nowhere"))


async def test_a_new_certificate_is_taken_over_without_a_restart(open_tls, authority, server, tmp_path):
    add_key(tmp_path)
    async with open_tls() as running:

        async def serial():
            context = ssl.create_default_context(cafile=str(authority.ca))
            _, writer = await asyncio.open_connection("127.0.0.1", running.endpoint.port, ssl=context)
            found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
            writer.close()
            return found

        first = await serial()
        authority.sign("server", "127.0.0.1")
        assert await serial() == first
        before = running.authenticator.tenants
        running.reload.set()
        async with asyncio.timeout(30):
            while running.authenticator.tenants is before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await serial() != first


async def test_without_any_key_too_and_what_does_not_hold_is_not_taken_over(open_tls, authority, server, tmp_path):
    """On loopback there need be no credentials file; what does not hold leaves the certificate before in force."""
    async with open_tls() as running:
        assert not (tmp_path / "data" / "credentials.toml").exists()

        async def serial():
            context = ssl.create_default_context(cafile=str(authority.ca))
            _, writer = await asyncio.open_connection("127.0.0.1", running.endpoint.port, ssl=context)
            found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
            writer.close()
            return found

        first = await serial()
        server.certificate.write_bytes(b"no certificate")
        running.reload.set()
        async with asyncio.timeout(30):
            while running.reload.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await serial() == first
        authority.sign("server", "127.0.0.1")
        running.reload.set()
        async with asyncio.timeout(30):
            while await serial() == first:
                pass


async def test_a_handshake_that_stands_still_is_given_up(open_tls, monkeypatch):
    monkeypatch.setattr(limits, "TLS_HANDSHAKE_SECONDS_MAX", 0.2)
    async with open_tls() as running:
        reader, writer = await asyncio.open_connection(running.endpoint.host, running.endpoint.port)
        writer.write(b"\x16\x03\x01\x02\x00")
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_the_dashboards_cookie_goes_over_tls_only(open_tls, authority, tmp_path):
    key = add_key(tmp_path, Scope.READ)
    async with open_tls() as running:
        context = ssl.create_default_context(cafile=str(authority.ca))
        reader, writer = await asyncio.open_connection(running.endpoint.host, running.endpoint.port, ssl=context)
        host = f"{running.endpoint.host}:{running.endpoint.port}"
        for origin, status in ((f"https://{host}", 201), (f"http://{host}", 403)):
            lines = (
                "POST /dashboard/session HTTP/1.1", f"Host: {host}", f"Origin: {origin}",
                f"Authorization: Bearer {key}", "Content-Length: 0", "", "",
            )  # fmt: skip
            writer.write("\r\n".join(lines).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.readexactly(int(re.search(r"(?i)content-length: (\d+)", head)[1]))
            assert head.startswith(f"HTTP/1.1 {status} ")
            assert ("; Secure" in head) is (status == 201)
        writer.close()
