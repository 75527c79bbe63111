"""Damage inside the engine: a record that is not what was put is never returned, and is called by its name."""

import pytest
from network_servers import S3_BUCKET, MooncakeServers, S3Server, ValkeyServer, free_ports

from kvloom.codec.container import ByteRange
from kvloom.errors import StorageFull, StorageUnavailable
from kvloom.kvstore import network_limits as limits
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.network import parse_network
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Unavailable
from kvloom.kvstore.record import HEADER_BYTES, encode_record

RECORD, OTHER = make_record(1, 200_000), make_record(2, 200_000)


@pytest.fixture
async def valkey(valkey_server: ValkeyServer, tmp_path):
    from valkey.asyncio import Valkey

    from kvloom.kvstore.network.valkey import ValkeyTier

    address = parse_network(f"valkey://127.0.0.1:{valkey_server.port}/damage")
    tier, raw = ValkeyTier(address, value_bytes_max=64 * 1024), Valkey(port=valkey_server.port)
    await tier.put(RECORD)
    head = tier._heads[RECORD.storage_key]
    place = tier._keys.head(RECORD.storage_key)
    yield tier, raw, place, tier._keys.parts(RECORD.storage_key, head, range(head.parts))
    await tier.delete_owner(RECORD.owner)
    await tier.close()
    await raw.aclose()


class TestValkey:
    @pytest.mark.parametrize("bit", range(0, 8 * 152, 61))
    async def test_a_flipped_bit_of_the_head(self, valkey, bit):
        tier, raw, place, _ = valkey
        await raw.setbit(place, bit, 1 - await raw.getbit(place, bit))
        for ranges in (None, [ByteRange(0, 10)]):
            assert isinstance(await tier.get(RECORD.storage_key, ranges), Corrupt)
        assert [info async for info in tier.scan()] == []
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key), Hit)

    async def test_a_flipped_bit_of_the_payload(self, valkey):
        tier, raw, place, parts = valkey
        for name, bit in ((place, 8 * 152 + 5), (place, 8 * 30_000), (parts[0], 0), (parts[-1], 77)):
            await raw.setbit(name, bit, 1 - await raw.getbit(name, bit))
            assert isinstance(await tier.get(RECORD.storage_key), Corrupt)
            await raw.setbit(name, bit, 1 - await raw.getbit(name, bit))
            assert isinstance(await tier.get(RECORD.storage_key), Hit)

    async def test_a_part_that_the_engine_evicted_makes_a_miss(self, valkey):
        tier, raw, _, parts = valkey
        await raw.delete(parts[1])
        assert isinstance(await tier.get(RECORD.storage_key), Miss)
        found = await tier.get(RECORD.storage_key, [ByteRange(0, 100)])
        assert isinstance(found, Hit)
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key), Hit)

    async def test_a_part_of_another_length(self, valkey):
        tier, raw, _, parts = valkey
        await raw.set(parts[0], b"short")
        assert isinstance(await tier.get(RECORD.storage_key), Corrupt)

    async def test_a_record_under_the_key_of_another(self, valkey):
        tier, raw, place, _ = valkey
        await raw.set(tier._keys.head(OTHER.storage_key), await raw.get(place))
        found = await tier.get(OTHER.storage_key, [ByteRange(0, 10)])
        assert isinstance(found, Corrupt)
        assert "another chunk" in found.detail

    async def test_a_key_of_another_kind(self, valkey):
        tier, raw, place, _ = valkey
        await raw.delete(place)
        await raw.lpush(place, "x")
        found = await tier.get(RECORD.storage_key)
        assert isinstance(found, Unavailable)
        assert "WRONGTYPE" in found.detail

    async def test_replacing_and_deleting_leave_no_part_behind(self, valkey):
        tier, raw, _, parts = valkey
        assert len(parts) == 3
        assert len(await raw.keys("damage:*")) == 4
        for size_bytes in (100_000, 10, 300_000):
            await tier.put(make_record(1, size_bytes))
        assert len(await raw.keys("damage:*")) == 1 + 5
        await tier.delete(RECORD.storage_key)
        assert await raw.keys("damage:*") == []

    async def test_parts_of_a_put_that_never_ended_expire_and_belong_to_their_owner(self, valkey):
        tier, raw, _, _ = valkey

        async def died(*arguments):
            raise StorageUnavailable("the daemon died here")

        tier._replace = died
        with pytest.raises(StorageUnavailable):
            await tier.put(OTHER)
        del tier._replace
        orphans = await raw.keys(tier._keys.head(OTHER.storage_key) + b":*")
        assert len(orphans) == 3
        assert all([0 < await raw.pttl(name) <= 600_000 for name in orphans])
        assert isinstance(await tier.get(OTHER.storage_key), Miss)
        assert await tier.delete_owner(RECORD.owner) == 1
        assert await raw.keys("damage:*") == []

    async def test_the_engine_expires_what_expires(self, valkey):
        tier, raw, _, _ = valkey
        expires_at_ms = 4_000_000_000_000
        record = make_record(3, 150_000, expires_at_ms=expires_at_ms)
        await tier.put(record)
        names = await raw.keys(tier._keys.head(record.storage_key) + b"*")
        assert len(names) == 3
        assert [await raw.execute_command("PEXPIRETIME", name) for name in names] == [expires_at_ms] * 3
        await tier.put(make_record(3, 150_000))
        names = await raw.keys(tier._keys.head(record.storage_key) + b"*")
        assert [await raw.pttl(name) for name in names] == [-1] * 3


async def test_a_valkey_that_is_full_refuses_clearly(start_valkey):
    from kvloom.kvstore.network.valkey import ValkeyTier

    server = start_valkey("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    tier = ValkeyTier(parse_network(f"valkey://127.0.0.1:{server.port}"))
    await tier.put(RECORD)

    async def fill() -> None:
        for number in range(100):
            await tier.put(make_record(number, 900_000))

    with pytest.raises(StorageFull, match="valkey is full"):
        await fill()
    found = await tier.get(RECORD.storage_key)
    assert isinstance(found, Hit)
    await tier.close()


async def test_a_valkey_that_evicts_loses_records_and_nothing_else(start_valkey):
    from kvloom.kvstore.network.valkey import ValkeyTier

    server = start_valkey("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru")
    tier = ValkeyTier(parse_network(f"valkey://127.0.0.1:{server.port}"), value_bytes_max=64 * 1024)
    records = [make_record(number, 200_000) for number in range(80)]
    for record in records:
        await tier.put(record)
    hits = 0
    for record in records:
        found = await tier.get(record.storage_key)
        assert isinstance(found, Hit | Miss)
        if isinstance(found, Hit):
            hits += 1
            assert found.value.parts[0] == record.payload
    assert 0 < hits < 80
    await tier.close()


async def test_a_wrong_password_is_said_and_not_shown(start_valkey):
    from kvloom.kvstore.network.valkey import ValkeyTier

    server = start_valkey("--requirepass", "right")
    for credentials, works in ((":right@", True), (":hunter2@", False), ("", False)):
        tier = ValkeyTier(parse_network(f"valkey://{credentials}127.0.0.1:{server.port}"))
        if works:
            await tier.put(RECORD)
        else:
            with pytest.raises(
                StorageUnavailable, match=r"WRONGPASS|NOAUTH|[Aa]uthentication|invalid username"
            ) as error:
                await tier.put(RECORD)
            assert "hunter2" not in str(error.value)
        await tier.close()


async def test_a_user_with_the_rights_that_the_document_names_is_enough(start_valkey):
    from kvloom.kvstore.network.valkey import ValkeyTier

    rights = (
        "+get", "+getrange", "+set", "+eval", "+exists", "+scan", "+unlink", "+pexpireat", "+persist", "+ping",
        "+cluster|slots",
    )  # fmt: skip
    server = start_valkey("--user", "kv", "on", ">secret", "~mine:*", "-@all", *rights)
    tier = ValkeyTier(parse_network(f"valkey://kv:secret@127.0.0.1:{server.port}/mine"))
    await tier.ping()
    for record in (RECORD, make_record(1, 150_000, expires_at_ms=4_000_000_000_000), OTHER):
        await tier.put(record)
        assert isinstance(await tier.get(record.storage_key), Hit)
    assert await tier.contains_many([RECORD.storage_key]) == [True]
    assert await tier.delete(RECORD.storage_key)
    assert len([info async for info in tier.scan()]) == 1
    assert await tier.delete_owner(RECORD.owner) == 1
    await tier.close()
    stranger = ValkeyTier(parse_network(f"valkey://kv:secret@127.0.0.1:{server.port}/other"))
    with pytest.raises(StorageUnavailable, match=r"NOPERM|[Nn]o permissions"):
        await stranger.put(RECORD)
    await stranger.close()


async def test_tls_is_verified(start_valkey, tmp_path, monkeypatch):
    from kvloom.kvstore.network.valkey import ValkeyTier

    certificate, key = make_certificate(tmp_path)
    (port,) = free_ports(1)
    start_valkey(
        "--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cert-file", str(certificate),
        "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate),
    )  # fmt: skip
    stranger = ValkeyTier(parse_network(f"valkeys://127.0.0.1:{port}"))
    with pytest.raises(StorageUnavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        await stranger.put(RECORD)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tier = ValkeyTier(parse_network(f"valkeys://127.0.0.1:{port}"))
    await tier.put(RECORD)
    assert isinstance(await tier.get(RECORD.storage_key), Hit)
    wrong_name = ValkeyTier(parse_network(f"valkeys://localhost:{port}"))
    with pytest.raises(StorageUnavailable):
        await wrong_name.put(RECORD)
    for opened in (stranger, tier, wrong_name):
        await opened.close()


def make_certificate(directory):
    """A certificate of its own authority, for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.TraditionalOpenSSL
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    paths[1].write_bytes(secret)
    return paths


class TestS3:
    @pytest.fixture
    async def tier(self, s3_server: S3Server):
        import boto3

        from kvloom.kvstore.network.s3 import S3Tier

        self.raw = boto3.client("s3", endpoint_url=s3_server.endpoint)
        tier = S3Tier(parse_network(f"s3://{S3_BUCKET}/damage"))
        yield tier
        await tier.delete_owner(RECORD.owner)
        await tier.close()

    def overwrite(self, key, data: bytes) -> None:
        path = f"damage/{key[:16].hex()}/{key[16:].hex()}"
        self.raw.put_object(Bucket=S3_BUCKET, Key=path, Body=data)

    async def test_objects_that_are_not_what_was_put(self, tier):
        whole = encode_record(RECORD)
        flipped = bytearray(whole)
        flipped[HEADER_BYTES + 1000] ^= 1
        for data in (bytes(flipped), whole[:-1], whole + b"x", whole[:100], b"", encode_record(OTHER), b"x" * 300):
            self.overwrite(RECORD.storage_key, data)
            assert isinstance(await tier.get(RECORD.storage_key), Corrupt), data[:20]
        for data in (whole[:-1], encode_record(OTHER), b"x" * 300):
            self.overwrite(RECORD.storage_key, data)
            assert isinstance(await tier.get(RECORD.storage_key, [ByteRange(5, 9)]), Corrupt)
        assert [info async for info in tier.scan()] == []
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key), Hit)

    async def test_an_object_replaced_between_two_reads_is_read_anew(self, tier):
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key, [ByteRange(0, 10)]), Hit)
        newer = make_record(1, 190_000, version=7)
        self.overwrite(RECORD.storage_key, encode_record(newer))
        found = await tier.get(RECORD.storage_key, [ByteRange(150_000, 150_100), ByteRange(5, 9)])
        assert isinstance(found, Hit)
        assert found.value.info == newer.info
        assert found.value.parts == (newer.payload[150_000:150_100], newer.payload[5:9])

    async def test_a_large_record_goes_in_parts_and_comes_in_ranges(self, tier):
        record = make_record(9, 2 * limits.S3_PART_BYTES + 12_345)
        await tier.put(record)
        path = f"damage/{record.storage_key[:16].hex()}/{record.storage_key[16:].hex()}"
        head = self.raw.head_object(Bucket=S3_BUCKET, Key=path)
        assert head["ETag"].strip('"').endswith("-3")
        assert head["Metadata"]["kvloom-content-key"] == record.content_key.hex()
        found = await tier.get(record.storage_key, [ByteRange(0, 5), ByteRange(9_000_000, 9_500_000)])
        assert isinstance(found, Hit)
        assert found.value.parts == (record.payload[:5], record.payload[9_000_000:9_500_000])
        whole = await tier.get(record.storage_key)
        assert isinstance(whole, Hit)
        assert whole.value.parts[0] == record.payload

    async def test_a_record_that_expires_is_tagged_with_its_class(self, tier):
        now_ms = 1_700_000_000_000
        tier._clock_ms = lambda: now_ms
        for days, tag in ((0.5, "1"), (1.5, "7"), (30, "30"), (1000, "365")):
            record = make_record(20, 100, expires_at_ms=now_ms + int(days * 86_400_000))
            await tier.put(record)
            path = f"damage/{record.storage_key[:16].hex()}/{record.storage_key[16:].hex()}"
            tags = self.raw.get_object_tagging(Bucket=S3_BUCKET, Key=path)["TagSet"]
            assert tags == [{"Key": "kvloom-ttl-days", "Value": tag}]

    async def test_a_bucket_that_is_not_there_is_said(self, tier):
        from kvloom.kvstore.network.s3 import S3Tier

        away = S3Tier(parse_network("s3://no-such-bucket/x"))
        with pytest.raises(StorageUnavailable, match="no-such-bucket"):
            await away.put(RECORD)


class TestMooncake:
    async def test_objects_that_are_not_what_was_put(self, mooncake_servers: MooncakeServers):
        from kvloom.kvstore.network.mooncake import MooncakeTier

        client = mooncake_servers.client()
        tier = MooncakeTier(parse_network(mooncake_servers.url("damage")), client=client)
        name, whole = tier._named(RECORD.storage_key), encode_record(RECORD)
        flipped = bytearray(whole)
        flipped[HEADER_BYTES + 1000] ^= 1
        for data in (bytes(flipped), whole[:-1], whole + b"x", whole[:100], encode_record(OTHER), b"x" * 300):
            assert client.upsert(name, data) == 0
            assert isinstance(await tier.get(RECORD.storage_key), Corrupt), data[:20]
        assert [info async for info in tier.scan()] == []
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key), Hit)
        await tier.close()
