import re
from pathlib import Path

import pytest

import kvloom
from kvloom.daemon.config_sources import (
    CONFIG_VARIABLE,
    Layer,
    default_config_path,
    explain,
    gather,
    unknown_variables,
)
from kvloom.daemon.machine import Machine
from kvloom.daemon.settings import SETTINGS, ConfigText
from kvloom.errors import ConfigError

GIB = 1024**3
ROOMS = ("blend", "clients", "codec", "daemon", "kvstore")
MACHINE = Machine(16 * GIB, 8 * GIB, 100 * GIB, 0, 1024)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kvloom.toml"
    path.write_text('port = 1\nmemory = "1GiB"\nssd = "2GiB"\n')
    return path


def test_flags_beat_the_environment_and_that_beats_the_file(file):
    environ = {"KVLOOM_PORT": "2", "KVLOOM_MEMORY": "3GiB", "KVLOOM_TTL": ""}
    gathered = gather(ConfigText(port="3"), environ, file=str(file))
    assert gathered.text == ConfigText(port="3", memory="3GiB", ssd="2GiB")
    assert gathered.file == file
    said = {name: (origin.layer, str(origin)) for name, origin in gathered.origins.items()}
    assert said["port"] == (Layer.FLAG, "--port")
    assert said["memory"] == (Layer.ENVIRONMENT, "KVLOOM_MEMORY")
    assert said["ssd"] == (Layer.FILE, f"{file}:3")
    assert said["ttl"] == (Layer.DEFAULT, "default")


def test_the_file_is_the_one_named_then_the_variables_then_the_users(file, tmp_path, monkeypatch):
    other = tmp_path / "other.toml"
    other.write_text("port = 9\n")
    assert gather(ConfigText(), {CONFIG_VARIABLE: str(other)}, file=str(file)).text.port == "1"
    assert gather(ConfigText(), {CONFIG_VARIABLE: str(other)}).text.port == "9"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert gather(ConfigText(), {}).file is None
    default_config_path().parent.mkdir(parents=True)
    default_config_path().write_text("port = 8\n")
    assert gather(ConfigText(), {}).text.port == "8"


def test_a_file_that_was_named_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml is not there: kvloom config init makes one"):
        gather(ConfigText(), {}, file=str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        gather(ConfigText(), {}, file=str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        (ConfigText(memory="lots"), {}, "memory 'lots' is not a size such as 512MiB or 4GiB (said in --memory)"),
        (ConfigText(), {"KVLOOM_SSD": "9TiB"}, "ssd is 9.0 TiB, this machine has 100.0 GiB (said in KVLOOM_SSD)"),
        (ConfigText(), {"KVLOOM_NETWORK": "valkey://a/UP"}, "(said in KVLOOM_NETWORK)"),
        (ConfigText(), {"KVLOOM_PORT": "tcp://10.0.0.1:7117"}, "enableServiceLinks: false (said in KVLOOM_PORT)"),
        (ConfigText(), {"KVLOOM_TLS_KEY": "k"}, "(said in KVLOOM_TLS_KEY)"),
    ],
)
def test_a_bad_value_is_named_with_its_limit_and_where_it_was_said(file, flags, environ, says):
    with pytest.raises(ConfigError) as caught:
        gather(flags, environ, file=str(file)).resolve(MACHINE)
    assert says in str(caught.value)


def test_a_bad_value_in_the_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "kvloom.toml"
    path.write_text("\n\nport = 70000\n")
    with pytest.raises(ConfigError, match=r"port '70000' is not a number .* \(said in .*kvloom\.toml:3\)"):
        gather(ConfigText(), {}, file=str(path)).resolve(MACHINE)


def test_explaining_shows_every_setting_and_no_password(file):
    environ = {"KVLOOM_NETWORK": "valkey://me:hunter2@cache/team", "KVLOOM_TTL": "15m"}
    rows = explain(gather(ConfigText(), environ, file=str(file)), MACHINE)
    assert [row.name for row in rows] == [item.name for item in SETTINGS]
    shown = {row.name: row for row in rows}
    assert "hunter2" not in repr(rows)
    assert shown["network"].value == "valkey://cache:6379/team"
    assert (shown["ttl"].value, shown["ttl"].source) == ("900 s", "KVLOOM_TTL")
    assert (shown["memory"].value, shown["memory"].source) == ("1.0 GiB", f"{file}:2")
    assert (shown["codec"].value, shown["codec"].layer) == ("kvloom", Layer.DEFAULT)
    assert shown["tls_key"].value == "none"


def test_variables_that_mean_nothing_are_told_with_what_was_meant():
    environ = {"KVLOOM_MEMROY": "1", "KVLOOM_API_KEY": "k", "KVLOOM_NETWORK_PASSWORD": "p", "PATH": "/"}
    assert unknown_variables(environ) == {"KVLOOM_MEMROY": "did you mean KVLOOM_MEMORY?"}


def test_every_variable_that_the_package_reads_is_known() -> None:
    package = Path(kvloom.__file__).parent
    sources = [path for room in ROOMS for path in (package / room).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(KVLOOM_[A-Z_]+)"', path.read_text())}
    assert len(read) > 5
    assert unknown_variables(dict.fromkeys(read, "")) == {}


def test_every_setting_is_where_the_table_says(file):
    text = ConfigText(**{item.name: item.example for item in SETTINGS})
    for row in explain(gather(text, {}, file=str(file)), MACHINE):
        assert row.layer is Layer.FLAG
        assert row.value
    assert Path(text.directory()) == Path("/var/lib/kvloom")
