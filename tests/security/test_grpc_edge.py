"""The gRPC edge keeps to the rules of HTTP: the same credentials, scopes and TLS, and one tenant's chunks only."""

import asyncio
import os

import grpc
import pytest
from certificates import Authority

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
