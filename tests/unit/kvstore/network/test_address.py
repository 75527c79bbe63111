"""The one line that configures a network tier: what it may be, and what an error says about what it may not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import ConfigError
from kvloom.kvstore.network.address import (
    HostPort,
    MooncakeAddress,
    S3Address,
    ValkeyAddress,
    parse_network,
)

GIB = 1024**3


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://cache", ValkeyAddress((HostPort("cache", 6379),), False, "kvloom")),
        ("redis://cache:7000/a.b-c_1", ValkeyAddress((HostPort("cache", 7000),), False, "a.b-c_1")),
        ("rediss://a:1,b,[::1]:3/x",
         ValkeyAddress((HostPort("a", 1), HostPort("b", 6379), HostPort("::1", 3)), True, "x")),
        ("valkeys://me:p%40ss@a", ValkeyAddress((HostPort("a", 6379),), True, "kvloom", "me", "p@ss")),
        ("valkey://:secret@[fe80::1]", ValkeyAddress((HostPort("fe80::1", 6379),), False, "kvloom", None, "secret")),
        ("s3://bucket", S3Address("bucket", "kvloom")),
        ("s3://my.bucket-1/some/Where/", S3Address("my.bucket-1", "some/Where")),
        ("mooncake://master",
         MooncakeAddress(HostPort("master", 50051), 9003, "kvloom", "tcp", "", "P2PHANDSHAKE", "127.0.0.1", 0,
                         GIB // 2)),
        ("mooncake://10.0.0.1:5/p?protocol=rdma&device=mlx5_0&segment=4GiB&buffer=1GiB&local=10.0.0.2&admin=9"
         "&metadata=http://10.0.0.1:8080/metadata",
         MooncakeAddress(HostPort("10.0.0.1", 5), 9, "p", "rdma", "mlx5_0", "http://10.0.0.1:8080/metadata", "10.0.0.2",
                         4 * GIB, GIB)),
    ],
)  # fmt: skip
def test_a_line_that_holds(url, address):
    assert parse_network(url) == address
    assert parse_network(f" {url} ") == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is not valkey://host:port"),
        ("cache:6379", "'cache:6379' is not valkey://host:port"),
        ("memcached://cache", "scheme 'memcached' is not one of valkey"),
        ("valkey://", "'' is not host or host:port"),
        ("valkey://a,,b", "'' is not host or host:port"),
        ("valkey://a:0", "port '0'"),
        ("valkey://a:65536", "port '65536'"),
        ("valkey://a:٣", "port '٣'"),
        ("valkey://a b", "'a b'"),
        ("valkey://::1", "'::1'"),
        ("valkey://a/0", "/0 would be a database number"),
        ("valkey://a/UP", "prefix 'UP'"),
        ("valkey://a/*", "prefix '*'"),
        ("valkey://a/b/c", "prefix 'b/c'"),
        ("valkey://a?timeout=1", "'?timeout=1'"),
        ("valkey://user@a", "user:password"),
        ("valkey://" + ",".join("a" * 65), "65 hosts, the limit is 64"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3://UPPER/x", "'UPPER'"),
        ("s3://bucket//x", "prefix '/x'"),
        ("s3://bucket/../x", "prefix '../x'"),
        ("s3://bucket/x?region=y", "'?region=y'"),
        ("mooncake://a,b", "2 Mooncake masters"),
        ("mooncake://a?protocol=udp", "protocol 'udp'"),
        ("mooncake://a?protocol=rdma", "needs device="),
        ("mooncake://a?speed=9", "option 'speed'"),
        ("mooncake://a?segment=9&segment=9", "twice"),
        ("mooncake://a?segment=much", "segment 'much'"),
        ("mooncake://a?metadata=x", "metadata 'x'"),
        ("mooncake://a?admin=x", "port 'x'"),
        ("mooncake://a?x", "'x'"),
        ("valkey://" + "a" * 5000, "is not valkey"),
    ],
)
def test_a_line_that_does_not_hold_is_refused_with_what_is_wrong(url, says):
    with pytest.raises(ConfigError) as refused:
        parse_network(url)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    "url", ["valkey://me:hunter2@a b", "valkey://me:hunter2@a/UP", "nonsense://me:hunter2@a", "hunter2@"]
)
def test_a_password_is_in_no_error(url):
    with pytest.raises(ConfigError) as refused:
        parse_network(url)
    assert "hunter2" not in str(refused.value)


def test_a_password_is_in_no_log():
    address = parse_network("valkeys://me:hunter2@a:1,b:2/c")
    assert str(address) == "valkeys://a:1,b:2/c"
    assert "hunter2" not in repr(address)


@given(st.text(max_size=60) | st.from_regex(r"(valkey|s3|mooncake)://[ -~]{0,40}", fullmatch=True))
def test_any_text_is_an_address_or_an_error(text):
    try:
        address = parse_network(text)
    except ConfigError:
        return
    assert parse_network(str(address)) == parse_network(str(address))
