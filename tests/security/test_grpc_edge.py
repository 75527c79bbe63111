"""The gRPC edge keeps to the rules of HTTP: the same credentials, scopes and TLS, and one tenant's chunks only."""

import asyncio
import os
import ssl
from contextlib import AsyncExitStack

import grpc
import pytest
from certificates import Authority

from kvloom import limits
from kvloom.clients import AsyncKvloomClient, KvloomClient, Trust
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.call import OPEN
from kvloom.daemon.caller import Scope
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.credentials import new_key
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.daemon.grpc_api import SERVICE_NAME, GrpcApi
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import open_daemon
from kvloom.kvstore.outcome import Hit, Miss, Unavailable

WAIT_SECONDS = 30


class Nobody:
    def __getattr__(self, name):
        return None


METHODS = GrpcApi(Nobody(), Nobody(), Nobody()).methods


def open_it(tmp_path, **options):
    """A daemon with gRPC, which knows the keys made before it starts."""
    data_dir = str(tmp_path / "data")
    text = ConfigText(port="0", grpc_port="0", data_dir=data_dir, memory="64MiB", ssd="off", **options)
    return open_daemon(resolve_config(text, probe_machine(text.directory())))


def add_key(tmp_path, tenant="acme", scopes=tuple(Scope)):
    made = new_key(os.urandom(38), tenant=tenant, scopes=scopes, now=utc_now())
    (tmp_path / "data").mkdir(mode=0o700, exist_ok=True)
    CredentialsFile(tmp_path / "data" / "credentials.toml").add(made)
    return made.text


def address(tmp_path, scheme="grpc"):
    return f"{scheme}://127.0.0.1:{DaemonNote.read(tmp_path / 'data').grpc_port}"


async def status_of(channel, name, *metadata):
    try:
        async for _ in channel.stream_stream(f"/{SERVICE_NAME}/{name}")(
            iter([b""]), metadata=metadata, timeout=WAIT_SECONDS
        ):
            break  # an answer is an answer; a stream of events would not end
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_does_what_its_scopes_allow_and_no_more(tmp_path, scope):
    bearer = ("authorization", f"Bearer {add_key(tmp_path, scopes=(scope,))}")
    async with open_it(tmp_path), grpc.aio.insecure_channel(address(tmp_path).removeprefix("grpc://")) as channel:
        for method in METHODS:
            code = await status_of(channel, method.name, bearer)
            refused = method.call.needs is not OPEN and method.call.needs is not scope
            assert (code is grpc.StatusCode.PERMISSION_DENIED) == refused, method.name
            if method.call.needs is not OPEN:
                assert await status_of(channel, method.name) is grpc.StatusCode.UNAUTHENTICATED, method.name


async def test_a_tenant_sees_its_own_chunks_only(tmp_path, container_bytes):
    keys = {tenant: add_key(tmp_path, tenant) for tenant in ("one", "other")}
    chunk = os.urandom(32)
    async with open_it(tmp_path):
        mine, theirs = (
            AsyncKvloomClient(address(tmp_path), api_key=key, data_dir=tmp_path / "data") for key in keys.values()
        )
        await mine.put(chunk, container_bytes((EXACT,), content_key=chunk))
        assert isinstance(await mine.get(chunk), Hit)
        assert await theirs.get(chunk) == Miss()
        assert await theirs.exists([chunk]) == [False]
        assert await theirs.delete(chunk) is False
        assert (await theirs.list_chunks()).chunks == ()
        await mine.close()
        await theirs.close()


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_is_spoken_and_verified(tmp_path, container_bytes, mutual):
    authority = Authority(tmp_path)
    pair = authority.sign("server", "127.0.0.1")
    shown = authority.sign("client", "client.example")
    asks = {"tls_client_ca": str(authority.ca)} if mutual else {}
    chunk = os.urandom(32)
    good = Trust(authority.ca, shown.certificate, shown.key) if mutual else Trust(authority.ca)
    bad = Trust(authority.ca) if mutual else Trust(Authority(tmp_path, "stranger").ca)
    async with open_it(tmp_path, tls_certificate=str(pair.certificate), tls_key=str(pair.key), **asks):
        url, options = address(tmp_path, "grpcs"), {"data_dir": tmp_path / "data"}
        async with AsyncKvloomClient(url, trust=good, **options) as client:
            await client.put(chunk, container_bytes((EXACT,), content_key=chunk))
            assert isinstance(await client.get(chunk), Hit)
        with KvloomClient(url, trust=good, **options) as blocking:
            assert isinstance(await asyncio.to_thread(blocking.get, chunk), Hit)
        for wrong in (url, address(tmp_path)):  # another authority, or no TLS at all
            async with AsyncKvloomClient(wrong, trust=bad, **options) as client:
                assert isinstance(await client.get(chunk), Unavailable)


async def served_certificate(address, authority):
    """The certificate that a connection made now is shown."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.set_alpn_protocols(["h2"])
    host, _, port = address.removeprefix("grpcs://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert()["subject"]
    writer.transport.abort()
    return dict(item[0] for item in shown)["commonName"]


async def test_new_certificate_files_are_read_on_a_reload_and_those_that_do_not_hold_are_not(tmp_path):
    authority = Authority(tmp_path)
    pair, renewed = authority.sign("server", "127.0.0.1"), authority.sign("renewed", "127.0.0.1")
    key, files = add_key(tmp_path), {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    async with open_it(tmp_path, **files) as running:

        async def reload():
            before = running.authenticator.tenants
            running.reload.set()
            async with asyncio.timeout(WAIT_SECONDS):
                while running.reload.is_set() or running.authenticator.tenants is before:  # noqa: ASYNC110
                    await asyncio.sleep(0)

        url, trust = address(tmp_path, "grpcs"), Trust(authority.ca)
        assert await served_certificate(url, authority) == "server"
        async with AsyncKvloomClient(url, trust=trust, api_key=key) as connected:
            assert (await connected.tenant()).puts == 0
            pair.certificate.write_bytes(renewed.certificate.read_bytes())
            pair.key.write_bytes(renewed.key.read_bytes())
            assert await served_certificate(url, authority) == "server"  # not before it is told to
            await reload()
            assert await served_certificate(url, authority) == "renewed"
            assert (await connected.tenant()).puts == 0  # over the connection that stood
        pair.certificate.write_bytes(b"no certificate")
        await reload()
        assert await served_certificate(url, authority) == "renewed"
        async with AsyncKvloomClient(url, trust=trust, api_key=key) as client:
            assert (await client.tenant()).puts == 0


async def test_a_tenant_may_have_so_many_calls_and_connections_and_another_goes_on(tmp_path):
    """Calls that stand still hold their places: those of one tenant up to its share, and none of another's."""
    greedy, other = (f"Bearer {add_key(tmp_path, tenant)}" for tenant in ("greedy", "other"))
    path = tmp_path / "data" / "credentials.toml"
    path.write_text(path.read_text() + "\n[tenants.greedy]\nrequests = 3\nconnections = 2\n")
    async with open_it(tmp_path) as running, AsyncExitStack() as stack:
        target = address(tmp_path).removeprefix("grpc://")
        admission = running.service.admission

        async def channel():
            return await stack.enter_async_context(
                grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
            )

        async def refused(on, key):
            try:
                async for _ in on.stream_stream(f"/{SERVICE_NAME}/Tenant")(
                    iter([b""]), metadata=(("authorization", key),), timeout=WAIT_SECONDS
                ):
                    return None
            except grpc.aio.AioRpcError as error:
                return dict(error.trailing_metadata())["kvloom-error"], error.details()

        def subscribe(on):
            return on.stream_stream(f"/{SERVICE_NAME}/Events")(iter([b""]), metadata=(("authorization", greedy),))

        one, two, three = [await channel() for _ in range(3)]
        streams = [subscribe(one), subscribe(one)]
        for stream in streams:
            assert await stream.read() == b""
        assert admission.connections == 1
        streams.append(subscribe(two))
        assert await streams[2].read() == b""
        assert admission.connections == 2
        code, line = await refused(one, greedy)
        assert code == "tenant_overloaded"
        assert "3 calls of this tenant are under way, its limit is 3" in line
        streams.pop(0).cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            while await refused(one, greedy) is not None:
                pass
        code, line = await refused(three, greedy)
        assert code == "tenant_overloaded"
        assert "2 connections, its limit is 2" in line
        assert await refused(three, other) is None
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            while admission.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_strangers_who_send_on_after_they_were_refused_take_no_calls_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "GRPC_LINGERING_MAX", 1)
    monkeypatch.setattr(limits, "REFUSED_BODY_SECONDS_MAX", 3600)
    bearer = ("authorization", f"Bearer {add_key(tmp_path)}")
    async with open_it(tmp_path), grpc.aio.insecure_channel(address(tmp_path).removeprefix("grpc://")) as channel:
        strangers = [channel.stream_stream(f"/{SERVICE_NAME}/Put")() for _ in range(5)]
        for call in strangers:
            await call.write(b"")
        codes = [asyncio.create_task(call.code()) for call in strangers]
        async with asyncio.timeout(WAIT_SECONDS):
            while sum(code.done() for code in codes) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert {code.result() for code in codes if code.done()} == {grpc.StatusCode.UNAUTHENTICATED}
        assert await status_of(channel, "Tenant", bearer) is grpc.StatusCode.OK
        for call in strangers:
            call.cancel()
        await asyncio.gather(*codes)


async def test_a_token_of_a_daemon_started_anew_is_taken_over(tmp_path, container_bytes):
    """The client goes on with the token of the new daemon, which listens where the old one did."""
    async with open_it(tmp_path):
        port = DaemonNote.read(tmp_path / "data").grpc_port
        client = AsyncKvloomClient(address(tmp_path), data_dir=tmp_path / "data")
        assert (await client.stats()).puts == 0
    text = ConfigText(port="0", grpc_port=str(port), data_dir=str(tmp_path / "data"), memory="64MiB", ssd="off")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))):
        assert (await client.stats()).puts == 0
        await client.close()


def test_messages_that_no_scope_is_needed_for_say_nothing_of_chunks():
    assert {method.name for method in METHODS if method.call.needs is OPEN} == {"Health"}
    assert {field.name for field in pb.Health.DESCRIPTOR.fields} == {"phase", "version", "pid"}
