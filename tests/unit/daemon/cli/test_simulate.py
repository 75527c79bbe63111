import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvloom.daemon.cli.simulate import simulate
from kvloom.errors import ConfigError, InvalidData, InvalidRequest

COLUMNS = {"trace", "link", "strategy", "ttft_mean_s", "ttft_p50_s", "ttft_p95_s", "ttft_p99_s"}
COLUMNS |= {"slo_attainment", "bytes", "gpu_s", "quality_loss"}


def ran(*arguments: str) -> str:
    result = CliRunner().invoke(simulate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_all_strategies_and_the_optimum_are_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    output = ran("--requests", "60", "--link", "step:10Gb,1Gb,1", "--link", "lte", "--json", str(file))
    record = json.loads(file.read_text())
    names = {row["strategy"] for row in record["rows"]}
    assert names == {
        "always-recompute",
        "always-load-raw",
        "always-load-level",
        "cachegen",
        "bidirectional",
        "kvloom",
        "optimum",
    }
    assert {row["link"] for row in record["rows"]} == {"step:10Gb,1Gb,1", "lte"}
    assert all(set(row) >= COLUMNS and row["requests"] == 60 for row in record["rows"])
    assert all(row["optimum_ratio"] >= 1 - 1e-6 for row in record["rows"])
    assert record["goals"][0]["cachegen_ratio"] > 0
    for name in names:
        assert name in output


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        ran("--requests", "40", "--link", "congested:10Gb", "--seed", seed, "--json", str(file))
    first, again, other = (json.loads(file.read_text())["rows"] for file in files)
    assert first == again
    assert first != other


def test_traces_and_bandwidth_are_read_from_files(tmp_path: Path) -> None:
    trace, link, questions = tmp_path / "chat_trace.jsonl", tmp_path / "radio.csv", tmp_path / "questions.json"
    rows = [{"timestamp": 900 * at, "input_length": 1100, "hash_ids": [0, 1, 2 + at]} for at in range(5)]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    link.write_text("0,1e8\n1,2e8\n2,0\n")
    questions.write_text(json.dumps([{"ctxs": [{"title": "t", "text": f"{at}" * 900} for at in range(5)]}] * 3))
    output = ran(
        *(str(trace), str(questions), "--link", str(link), "--ability", "prefix_cut", "--requests", "20"),
        *("--capacity", "1GB", "--policy", "lru", "--nodes", "2", "--nodes-per-link", "2", "--slo", "0.3"),
    )
    assert "chat" in output
    assert "questions" in output
    assert "radio" in output
    assert "bidirectional" not in output  # such an engine cannot


def test_without_the_optimum_nothing_is_said_of_it(tmp_path: Path) -> None:
    output = ran("--requests", "30", "--no-optimum", "--strategy", "kvloom", "--strategy", "cachegen")
    assert "optimum " not in output
    assert "always-recompute" not in output


def test_rows_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran("--requests", "30", "--plot", str(tmp_path / "rows.svg"))
    assert b"<svg" in (tmp_path / "rows.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["no-such-trace"], InvalidRequest, "no-such-trace"),
        (["--link", "string"], ConfigError, "string"),
        (["--level", "best"], ConfigError, "best"),
        (["--capacity", "much"], ConfigError, "much"),
    ],
)
def test_what_cannot_be_simulated_is_named(arguments: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        CliRunner().invoke(simulate, ["--requests", "5", *arguments], catch_exceptions=False)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(InvalidData, match="ctxs"):
        CliRunner().invoke(simulate, [str(tmp_path / "x.json")], catch_exceptions=False)
