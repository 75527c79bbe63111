import json
import stat

import pytest
from click.testing import CliRunner

from kvloom.daemon.cli import main
from kvloom.daemon.cli.config import config
from kvloom.daemon.settings import SETTINGS


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(config, arguments, catch_exceptions=False)


def test_a_new_file_is_private_and_is_not_overwritten(run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "kvloom" / "kvloom.toml"
    assert run("init").exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("port = 5\n")
    monkeypatch.setattr("sys.argv", ["kvloom", "config", "init"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "is there already: --force replaces it" in capsys.readouterr().err
    assert path.read_text() == "port = 5\n"
    assert run("init", "--force").exit_code == 0
    assert "# port = 7117" in path.read_text()


def test_explain_takes_the_flags_of_serve(run, tmp_path):
    run("init")
    path = tmp_path / "kvloom" / "kvloom.toml"
    path.write_text(path.read_text().replace('# ttl = "never"', 'ttl = "1h"'))
    rows = {row["name"]: row for row in json.loads(run("explain", "--memory", "8MiB", "--json").stdout)}
    assert set(rows) == {item.name for item in SETTINGS}
    assert (rows["memory"]["value"], rows["memory"]["layer"]) == ("8.0 MiB", "flag")
    assert rows["ttl"]["value"] == "3600 s"
    line = path.read_text().splitlines().index('ttl = "1h"') + 1
    assert rows["ttl"]["source"] == f"{path}:{line}"
    table = run("explain").stdout
    assert all(item.name in table for item in SETTINGS)
