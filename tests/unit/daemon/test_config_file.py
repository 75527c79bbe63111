import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.config import resolve_config
from kvloom.daemon.config_file import commented_example, parse_config_file
from kvloom.daemon.machine import Machine
from kvloom.daemon.settings import SETTINGS, ConfigText
from kvloom.errors import ConfigError

GIB = 1024**3
MACHINE = Machine(16 * GIB, 8 * GIB, 100 * GIB, 0, 1024)


def parse(text):
    return parse_config_file(text.encode(), "kvloom.toml")


def test_a_file_says_values_and_on_which_line():
    document = parse('# comment\nport = 7200\n\nmemory = "2GiB"\nttl = 90\n"codec" = "cachegen"\n')
    assert document.text == ConfigText(port="7200", memory="2GiB", ttl="90", codec="cachegen")
    assert dict(document.lines) == {"port": 2, "memory": 4, "ttl": 5, "codec": 6}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('memroy = "1GiB"', "kvloom.toml:1: 'memroy' is not a setting; did you mean memory?"),
        ("\nzzzz = 1", "kvloom.toml:2: 'zzzz' is not a setting; there are: host, port"),
        ("[tenants.acme]\nssd_bytes = 1", "kvloom.toml:1: [tenants] stands in the credentials file"),
        ("port = true", "kvloom.toml:1: port is 'True' of type bool, must be text or a whole number"),
        ("host = 1", "kvloom.toml:1: host is '1' of type int, must be text"),
        ("memory = 1.5", "memory is '1.5' of type float"),
        ('memory = ""', "kvloom.toml:1: memory is empty"),
        ("port = ", "kvloom.toml is not TOML: "),
        ("port = 1\nport = 2", "kvloom.toml is not TOML: "),
    ],
)
def test_what_a_file_cannot_say(text, says):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_past_its_limit_is_not_parsed():
    with pytest.raises(ConfigError, match=f"the limit is {limits.CONFIG_FILE_BYTES_MAX}"):
        parse_config_file(b"#" * (limits.CONFIG_FILE_BYTES_MAX + 1), "kvloom.toml")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_config_error(data):
    with contextlib.suppress(ConfigError):
        assert parse_config_file(data, "kvloom.toml").text.said() is not None


@given(st.dictionaries(st.sampled_from([item.name for item in SETTINGS]), st.text("abc019.-/:", min_size=1)))
def test_what_is_written_is_what_is_read(values):
    document = parse("\n".join(f'{name} = "{value}"' for name, value in values.items()))
    assert document.text.said() == values
    assert dict(document.lines) == {name: line for line, name in enumerate(values, 1)}


def test_the_example_says_nothing_until_something_is_uncommented():
    assert tomllib.loads(commented_example()) == {}


def test_every_line_of_the_example_holds_and_every_setting_has_one():
    lines = [line.removeprefix("# ") for line in commented_example().splitlines() if " = " in line]
    document = parse("\n".join(lines))
    assert set(document.text.said()) == {item.name for item in SETTINGS}
    resolve_config(document.text, MACHINE)
