"""A whole bench of the embedded model, with peers that are scripts of a few lines."""

import stat
import sys
from pathlib import Path

import pytest

from codemill.bench.run import Bench, BenchRequest
from codemill.bench.workload import Workload
from codemill.errors import CodemillError

# Answers as a worker does, and takes as many milliseconds for a token as its setting says.
PEER = """
import json, os, signal, sys
def reply(value):
    print(json.dumps({"peak_memory": 3000000, **value}), flush=True)
SETTINGS = ["3", "2"]
START
reply({"settings": SETTINGS, "load_seconds": 2.0, "empty_memory": 1000000, "weights": {}})
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("forget_peak"):
        reply({})
        continue
    RUN
    token = float(asked["setting"]) / 1000
    reply({"first_seconds": token * asked["num_prompt"], "decode_seconds": token * asked["num_new"]})
"""
CRASH = "os.kill(os.getpid(), signal.SIGSEGV)"


def run_bench(folder: Path, start: str = "", run: str = "") -> Bench:
    script, python = folder / "peer.py", folder / "python"
    script.write_text(PEER.replace("START", start).replace("RUN", run))
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S {script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    bench = Bench(
        BenchRequest(
            workload=Workload((16, 32), (0,), (1,), 4),
            rounds=2,
            peers=["llama.cpp"],
            peers_python=str(python),
            folder=folder / "models",
        )
    )
    bench.run(lambda text: None)
    return bench


def peers_of(bench: Bench) -> dict[str, float]:
    return {f.name: round(f.peers["llama.cpp"].value, 6) for f in bench.figures() if "llama.cpp" in f.peers}


def test_the_best_setting_is_used(tmp_path: Path) -> None:
    bench = run_bench(tmp_path)
    assert not bench.failures
    peers = peers_of(bench)
    assert peers.pop("load") == 2.0
    assert (peers.pop("peak memory"), peers.pop("peak memory after loading")) == (3000000, 3000000)
    assert peers == {
        "prefill 16": 500.0,
        "prefill 32": 500.0,
        "time to first token, 16": 0.032,
        "decode after 0": round(4 / (0.002 * 5), 6),
    }
    assert bench.to_json()["failures"] == {}


def test_a_setting_that_crashes_is_not_used(tmp_path: Path) -> None:
    bench = run_bench(tmp_path, run=f"if asked['setting'] == '2': {CRASH}")
    assert peers_of(bench)["prefill 32"] == round(1000 / 3, 6)
    assert [text.split(": ")[0] for text in bench.failures["llama.cpp"]] == ["prompt of 28, 1 decoded (2)"]
    assert "the process of llama.cpp ended early (signal SIGSEGV)" in bench.failures["llama.cpp"][0]


def test_a_run_that_crashes_costs_its_figure_only(tmp_path: Path) -> None:
    bench = run_bench(tmp_path, run=f"if asked['num_prompt'] == 32: {CRASH}")
    assert set(peers_of(bench)) >= {"prefill 16", "decode after 0"}
    assert "prefill 32" not in peers_of(bench)
    assert len(bench.failures["llama.cpp"]) == 1


def test_what_a_peer_refuses_is_said_and_not_asked_again(tmp_path: Path) -> None:
    refuse = "if asked['num_prompt'] == 32: reply({'error': 'no memory for a context'}); continue"
    bench = run_bench(tmp_path, run=refuse)
    assert bench.failures["llama.cpp"] == ["prompt of 32 (2): llama.cpp: no memory for a context"]
    assert bench.to_json()["failures"] == {"llama.cpp": bench.failures["llama.cpp"]}


@pytest.mark.parametrize("start", [CRASH, "reply({'error': 'no GGUF of this shape'}); sys.exit()"])
def test_a_peer_that_cannot_start_leaves_ours_alone(tmp_path: Path, start: str) -> None:
    bench = run_bench(tmp_path, start=start)
    assert not peers_of(bench)
    assert len(bench.figures()) > 5
    assert len(bench.failures["llama.cpp"]) == 1


def test_a_peer_that_dies_for_good(tmp_path: Path) -> None:
    once = tmp_path / "once"
    start = f"if os.path.exists({str(once)!r}): {CRASH}"
    bench = run_bench(tmp_path, start=start, run=f"open({str(once)!r}, 'w').close(); {CRASH}")
    assert not peers_of(bench)
    assert len(bench.failures["llama.cpp"]) == 2


def test_a_peer_that_is_not_installed_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match=r"llama\.cpp is not installed there: install it there"):
        run_bench(tmp_path, start="reply({'error': 'llama.cpp is not installed there', 'missing': True})")
