import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.config import ConfigText, LogFormat, LogLevel, TlsFiles, format_size, parse_size, resolve_config
from kvloom.daemon.machine import Machine, probe_machine
from kvloom.errors import ConfigError
from kvloom.kvstore.eviction import POLICIES
from kvloom.kvstore.eviction_choice import EvictionChoice, PolicyName
from kvloom.kvstore.tiered.admission import AdmissionRule

GIB = 1024**3
MACHINE = Machine(
    memory_total_bytes=16 * GIB,
    memory_available_bytes=8 * GIB,
    disk_free_bytes=100 * GIB,
    own_disk_bytes=0,
    open_files_max=1024,
)


def test_defaults_fit_the_machine(tmp_path):
    config = resolve_config(ConfigText(data_dir=str(tmp_path)), MACHINE)
    assert (config.host, config.port) == ("127.0.0.1", 7117)
    assert config.memory_bytes == 2 * GIB
    assert config.ssd_bytes == 20 * GIB
    assert config.dirty_bytes_max == limits.DIRTY_BYTES_MAX
    assert (config.log_format, config.log_level) == (LogFormat.AUTO, LogLevel.INFO)


def test_default_sizes_are_capped_on_a_large_machine():
    large = Machine(1024 * GIB, 1000 * GIB, 10_000 * GIB, 0, 1024)
    config = resolve_config(ConfigText(), large)
    assert (config.memory_bytes, config.ssd_bytes) == (4 * GIB, 64 * GIB)


def test_what_the_daemon_occupies_already_counts_as_free_disk():
    used = Machine(16 * GIB, 8 * GIB, 80 * GIB, 20 * GIB, 1024)
    assert resolve_config(ConfigText(), used).ssd_bytes == resolve_config(ConfigText(), MACHINE).ssd_bytes


def test_dirty_bytes_fit_into_a_small_memory_tier():
    assert resolve_config(ConfigText(memory="64MiB"), MACHINE).dirty_bytes_max == 32 * 1024**2


def test_a_disk_that_is_all_but_full_gets_no_tier_unless_one_is_asked_for():
    full = Machine(16 * GIB, 8 * GIB, 2 * 1024**2, 0, 1024)
    assert resolve_config(ConfigText(), full).ssd_bytes == 0
    assert resolve_config(ConfigText(ssd="1MiB"), full).ssd_bytes == 1024**2


def test_flags_beat_the_environment(tmp_path):
    environ = {"KVLOOM_PORT": "1", "KVLOOM_MEMORY": "1GiB", "KVLOOM_DATA_DIR": str(tmp_path), "KVLOOM_SSD": ""}
    config = resolve_config(ConfigText(port="0").over(ConfigText.from_environ(environ)), MACHINE)
    assert (config.port, config.memory_bytes, config.data_dir) == (0, GIB, tmp_path)
    assert config.ssd_bytes == 20 * GIB


@pytest.mark.parametrize("text", ["0", "off"])
def test_the_disk_tier_can_be_switched_off(text):
    assert resolve_config(ConfigText(ssd=text), MACHINE).ssd_bytes == 0


def test_the_network_is_configured_by_a_line_and_a_secret(tmp_path):
    config = resolve_config(ConfigText(), MACHINE)
    assert (config.network, config.root_secret) == (None, None)
    environ = {
        "KVLOOM_NETWORK": "valkey://me:hunter2@cache/team",
        "KVLOOM_ROOT_SECRET": str(tmp_path / "secret"),
    }
    config = resolve_config(ConfigText.from_environ(environ), MACHINE)
    assert config.network == "valkey://me:hunter2@cache/team"
    assert config.root_secret == tmp_path / "secret"
    assert "hunter2" not in repr(config)
    config = resolve_config(ConfigText(network="off").over(ConfigText.from_environ(environ)), MACHINE)
    assert config.network is None


@pytest.mark.parametrize(
    ("given_text", "says"),
    [
        (ConfigText(network="memcached://x"), "network scheme 'memcached' is not one of"),
        (ConfigText(network="valkey://a/UP"), "prefix 'UP'"),
        (ConfigText(host="0.0.0.0"), "host '0.0.0.0'"),
        (ConfigText(host="::"), "host '::'"),
        (ConfigText(host="192.168.1.5"), "host '192.168.1.5'"),
        (ConfigText(host="example.org"), "host 'example.org'"),
        (ConfigText(http_auth="maybe"), "http_auth 'maybe' is not one of token, off"),
        (ConfigText(tls_certificate="c.pem"), "tls_certificate is set, but TLS needs both"),
        (ConfigText(port="70000"), "port '70000' is not a number from 0 to 65535"),
        (ConfigText(port="-1"), "port '-1'"),
        (ConfigText(port="0000080000"), "port '0000080000'"),
        (ConfigText(port="http"), "port 'http'"),
        (ConfigText(memory="lots"), "memory 'lots' is not a size such as 512MiB"),
        (ConfigText(memory="10"), "memory is 10 B, at least 1.0 MiB is needed"),
        (ConfigText(memory="64GiB"), "memory is 64.0 GiB, this machine has 16.0 GiB"),
        (ConfigText(ssd="1TiB"), "ssd is 1.0 TiB, this machine has 100.0 GiB"),
        (ConfigText(ssd="-5"), "ssd '-5'"),
        (ConfigText(log_format="xml"), "log_format 'xml' is not one of auto, console, json"),
        (ConfigText(log_level="loud"), "log_level 'loud' is not one of debug, info, warning, error"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_limit(given_text, says):
    with pytest.raises(ConfigError) as caught:
        resolve_config(given_text, MACHINE)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_every_loopback_host_is_accepted(host):
    config = resolve_config(ConfigText(host=host), MACHINE)
    assert (config.host, config.loopback, config.tls) == (host, True, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_beyond_loopback_there_is_tls(host, tmp_path):
    text = ConfigText(host=host, tls_certificate=str(tmp_path / "c"), tls_key="k", tls_client_ca="ca")
    config = resolve_config(text, MACHINE)
    assert (config.host, config.loopback) == (host, False)
    assert config.tls == TlsFiles(tmp_path / "c", Path("k").absolute(), Path("ca").absolute())


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512MiB", 512 * 1024**2), ("1.5 GB", 1_500_000_000), ("4g", 4 * GIB), ("2KB", 2000), ("7B", 7)],
)
def test_sizes_people_write(text, size):
    assert parse_size("size", text) == size


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        assert parse_size("size", text) >= 0


@given(st.integers(0, 2**60))
def test_a_formatted_size_parses_back_to_nearly_itself(size):
    assert abs(parse_size("size", format_size(size)) - size) <= 0.06 * size + 0.5


def test_probing_reads_the_real_machine(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    machine = probe_machine(tmp_path / "not" / "there")
    assert 0 < machine.memory_available_bytes <= machine.memory_total_bytes
    assert machine.disk_free_bytes > 0
    assert machine.own_disk_bytes == 0
    assert probe_machine(tmp_path).own_disk_bytes >= 100_000


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("never", None), ("90", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)]
)
def test_a_time_to_live_has_units(text, seconds):
    assert resolve_config(ConfigText(ttl=text), MACHINE).ttl_seconds == seconds


@pytest.mark.parametrize("text", ["0", "-1", "1.5h", "soon", "99999d", "", " "])
def test_a_time_to_live_that_is_none(text):
    with pytest.raises(ConfigError, match="ttl"):
        resolve_config(ConfigText(ttl=text), MACHINE)


def test_what_the_ssd_takes_is_a_rule_by_name():
    assert resolve_config(ConfigText(), MACHINE).ssd_admission is AdmissionRule.ALWAYS
    assert resolve_config(ConfigText(ssd_admission="second-use"), MACHINE).ssd_admission is AdmissionRule.SECOND_USE
    with pytest.raises(ConfigError, match="ssd_admission 'third-use' is not one of always, second-use"):
        resolve_config(ConfigText(ssd_admission="third-use"), MACHINE)


@pytest.mark.parametrize(
    ("text", "memory", "ssd"),
    [
        (None, "gittins", "gittins"),
        ("lru", "lru", "lru"),
        (" memory = gdsf , ssd=s3-fifo", "gdsf", "s3-fifo"),
        ("ssd=w-tinylfu", "gittins", "w-tinylfu"),
        ("memory=hinted", "hinted", "gittins"),
    ],
)
def test_every_tier_may_have_a_policy_of_its_own(text: str | None, memory: str, ssd: str) -> None:
    choice = resolve_config(ConfigText(eviction=text), MACHINE).eviction
    assert (choice.memory, choice.ssd) == (memory, ssd)
    assert EvictionChoice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fifo", "policy 'fifo' is unknown; policies are gittins, lru, s3-fifo, w-tinylfu, gdsf, hinted"),
        ("memory=", "policy '' is unknown"),
        ("gpu=lru", "tiers are memory, ssd"),
        ("memory=lru,memory=gdsf", "each tier once"),
        ("memory=lru,gdsf", "each tier once"),
    ],
)
def test_a_policy_or_tier_that_there_is_not_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve_config(ConfigText(eviction=text), MACHINE)


def test_every_policy_can_be_chosen_and_every_choice_is_one() -> None:
    assert [str(name) for name in PolicyName] == list(POLICIES)


def test_a_quota_on_the_network_store_is_a_size_or_off():
    assert resolve_config(ConfigText(), MACHINE).network_quota_bytes is None
    assert resolve_config(ConfigText(network_quota="off"), MACHINE).network_quota_bytes is None
    assert resolve_config(ConfigText(network_quota="500GiB"), MACHINE).network_quota_bytes == 500 * GIB
    for text, says in (("lots", "network_quota 'lots'"), ("10", "network_quota is 10 B, at least 1.0 MiB")):
        with pytest.raises(ConfigError, match=says):
            resolve_config(ConfigText(network_quota=text), MACHINE)
