"""`codemill eval`: what it prints where, its exit status, and a run that is stopped and goes on."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from codemill.eval import registry
from commands.conftest import Run
from commands.eval_data import COUNT, problem, write_data
from eval import tiny

KEY = "sk-secret-0123456789"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in HumanEval's format; what runs by default lands in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return write_data(tmp_path / "HumanEval.jsonl.gz")


@pytest.fixture
def tiny_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The suite `tiny`, registered, and its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "codemill.eval.tiny", tiny)
    monkeypatch.setitem(registry._SUITES, "tiny", ("tiny", "TinySuite"))
    return tiny.write_lines(tmp_path / "tiny.jsonl", tiny.records(4))


@dataclass
class Server:
    """Answers every prompt of `data` correctly, after `delay` seconds. `asked` are the prompts."""

    url: str = ""
    delay: float = 0.0
    status: int = 200
    asked: list[str] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.headers.append(self.headers)
            found.asked.append(payload["prompt"])
            time.sleep(found.delay)
            number = re.findall(r"x \+ (\d+)", payload["prompt"])[-1]
            body = json.dumps({"choices": [{"text": f"    return x + {number}\n", "finish_reason": "stop"}]}).encode()
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    found.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield found
    httpd.shutdown()
    httpd.server_close()


def samples(path: Path, lines: list[Any]) -> Path:
    return tiny.write_lines(path, lines)


def good(number: int) -> dict[str, str]:
    return {"task_id": f"HumanEval/{number}", "completion": f"    return x + {number}\n"}


# Answers of the suite itself


def test_gold(codemill: Run, data: Path) -> None:
    done = codemill("eval", "humaneval", "--gold", "--data", data, "--json")
    assert done.status == 0
    result = json.loads(done.out)
    assert (result["suite"], result["n"], result["pass@1"], result["directory"]) == ("humaneval", COUNT, 1.0, None)
    assert result["verdicts"] == {
        "ok": COUNT,
        **dict.fromkeys(("failed", "timeout", "memory", "output limit", "blocked", "harness error"), 0),
    }
    assert "judging: 6/6" in done.err
    assert "100.0 % pass" in done.err
    assert not Path("codemill-eval").exists()


def test_gold_as_text_and_the_first_problems(codemill: Run, data: Path) -> None:
    done = codemill("eval", "HumanEval", "--gold", "--data", data, "--limit", "2")
    assert done.status == 0
    assert re.match(r"HumanEval: 2 problems\n  pass@1  100\.00 %  \(95 % interval .* to 100\.0\)\n  ok 2\n", done.out)


def test_a_gold_solution_that_fails_is_named(codemill: Run, data: Path) -> None:
    broken = problem(1) | {"canonical_solution": "    return None\n"}
    data.write_text("\n".join(map(json.dumps, [problem(0), broken, problem(2)])))
    done = codemill("eval", "humaneval", "--gold", "--data", data, "--json")
    assert done.status == 1
    assert json.loads(done.out)["verdicts"]["failed"] == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("codemill: error: 1 of 3 gold solutions do not pass: HumanEval/1 (failed")
    assert "AssertionError" in last


def test_buggy_solutions(codemill: Run, tiny_data: Path) -> None:
    done = codemill("eval", "tiny", "--buggy", "--data", tiny_data, "--json")
    assert (done.status, json.loads(done.out)["pass@1"]) == (0, 0.0)
    records = tiny.records(3)
    records[2]["bug"] = records[2]["solution"]
    done = codemill("eval", "tiny", "--buggy", "--data", tiny.write_lines(tiny_data, records))
    assert done.status == 1
    assert done.err.splitlines()[-1].endswith("1 of 3 buggy solutions pass: T/2 (ok)")


def test_a_suite_without_buggy_solutions(codemill: Run, data: Path) -> None:
    done = codemill("eval", "humaneval", "--buggy", "--data", data)
    assert done.status == 2
    assert "HumanEval has none" in done.err.splitlines()[-1]


def test_gold_imports_no_torch(data: Path) -> None:
    code = (
        "import sys; from codemill.cli import main\n"
        f"status = main(['eval', 'humaneval', '--gold', '--data', {str(data)!r}])\n"
        "sys.exit(status or ('torch' in sys.modules) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


# Samples


def test_samples(codemill: Run, data: Path, tmp_path: Path) -> None:
    lines = [good(i) for i in range(COUNT - 1)]
    lines.append({"task_id": f"HumanEval/{COUNT - 1}", "solution": "def add_5(x):\n    return 0\n"})
    done = codemill("eval", "humaneval", "--samples", samples(tmp_path / "s.jsonl", lines), "--data", data, "--json")
    assert done.status == 0
    result = json.loads(done.out)
    assert (result["pass@1"], result["missing"], result["directory"]) == (5 / 6, [], None)
    assert "gold check: 6/6" in done.err


def test_a_bad_samples_file_is_judged_all_the_same_but_the_status_is_1(
    codemill: Run, data: Path, tmp_path: Path
) -> None:
    lines: list[Any] = [good(i) for i in range(COUNT)]
    lines[2:2] = ['{"task_id": "HumanEval/2", "compl', {"task_id": "HumanEval/999", "completion": ""}, good(0)]
    path = samples(tmp_path / "s.jsonl", lines)
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "--json", "--output", tmp_path / "run")
    assert done.status == 1
    result = json.loads(done.out)
    assert (result["pass@1"], result["verdicts"]["ok"]) == (1.0, COUNT)
    for line, why in ((3, "not valid JSON"), (4, "no task 'HumanEval/999'"), (5, "the same sample of HumanEval/0")):
        assert re.search(rf"^warning: {re.escape(str(path))}, line {line}: .*{why}", done.err, re.MULTILINE)
    assert done.err.splitlines()[-1].startswith("codemill: error: 3 samples could not be taken; the first: ")
    assert (tmp_path / "run" / "report.html").exists()


def test_tasks_without_a_sample_fail_unless_they_may_be_missing(codemill: Run, data: Path, tmp_path: Path) -> None:
    path = samples(tmp_path / "s.jsonl", [good(0), good(3)])
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "--json")
    result = json.loads(done.out)
    assert (done.status, result["pass@1"], len(result["missing"])) == (0, 2 / 6, 4)
    assert "no sample for 4 tasks: HumanEval/1, HumanEval/2, HumanEval/4, HumanEval/5" in done.err
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "--json", "--allow-missing")
    assert (json.loads(done.out)["pass@1"], len(json.loads(done.out)["excluded"])) == (1.0, 4)
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "--json", "--limit", "1")
    assert (done.status, json.loads(done.out)["pass@1"], json.loads(done.out)["n"]) == (0, 1.0, 1)


def test_several_samples_a_task(codemill: Run, data: Path, tmp_path: Path) -> None:
    wrong = [{"task_id": f"HumanEval/{i}", "completion": f"    return {i}\n"} for i in range(COUNT)]
    path = samples(tmp_path / "s.jsonl", [*map(good, range(COUNT)), *wrong])
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "--json", "-k", "1,2")
    assert json.loads(done.out)["pass@k"] == {"1": 0.5, "2": 1.0}
    done = codemill("eval", "humaneval", "--samples", path, "--data", data, "-k", "3")
    assert (done.status, "at most 2 samples" in done.err) == (2, True)


def test_samples_of_something_else(codemill: Run, data: Path, tmp_path: Path) -> None:
    path = samples(tmp_path / "s.jsonl", [{"task_id": "Mbpp/2", "completion": "x"}])
    done = codemill("eval", "humaneval", "--samples", path, "--data", data)
    assert done.status == 2
    assert "no sample of this suite" in done.error
    assert "'Mbpp/2'" in done.error


# Models


def test_a_model_in_this_process(codemill: Run, data: Path, model_directory: Path) -> None:
    options = (
        "--data",
        data,
        "--model",
        model_directory,
        "--max-tokens",
        "4",
        "-n",
        "2",
        "--seed",
        "3",
        "--limit",
        "3",
    )
    done = codemill("eval", "humaneval", *options, "--json")
    assert done.status == 0
    result = json.loads(done.out)
    assert (result["n"], result["pass@1"]) == (3, 0.0)
    assert sum(result["verdicts"].values()) == 6
    assert result["configuration"]["sampling"] == {"temperature": 0.8, "top_p": 1.0, "max_tokens": 4}
    assert len(result["model_fingerprint"]) == 64
    directory = Path(result["directory"])
    assert directory.parent == Path("codemill-eval")
    assert re.fullmatch(r"humaneval-model\d+-\d{8}-\d{6}", directory.name)
    first = (directory / "samples.jsonl").read_text()
    assert codemill("eval", "humaneval", *options, "--output", "again").status == 0
    second = Path("again/samples.jsonl").read_text()
    raw = [
        {(r["task_id"], r["index"]): (r["seed"], r["raw"]) for r in map(json.loads, t.splitlines())}
        for t in (first, second)
    ]
    assert raw[0] == raw[1]
    assert len({seed for seed, _ in raw[0].values()}) == 6
    assert json.loads((directory / "results.json").read_text())["pass@1"] == 0.0


def test_a_model_behind_an_endpoint(codemill: Run, data: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    options = ("--endpoint", server.url, "--model", "org/m", "--data", data, "--output", "run")
    done = codemill("eval", "humaneval", *options, "--style", "base", "--json")
    assert done.status == 0
    result = json.loads(done.out)
    assert (result["pass@1"], result["directory"], len(server.asked)) == (1.0, "run", COUNT)
    assert result["configuration"]["endpoint"] == server.url
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = b"".join(file.read_bytes() for file in Path("run").iterdir())
    assert KEY not in written.decode() + done.out + done.err
    again = codemill("eval", "humaneval", *options, "--style", "base")
    assert (again.status, len(server.asked)) == (2, COUNT)
    assert "holds this run, complete" in again.err.splitlines()[-1]


def test_an_endpoint_that_only_fails(codemill: Run, data: Path, server: Server) -> None:
    server.status = 500
    options = ("--endpoint", server.url, "--model", "m", "--data", data, "--style", "base", "--retries", "0")
    done = codemill("eval", "humaneval", *options, "--json")
    assert done.status == 1
    result = json.loads(done.out)
    assert (result["pass@1"], result["verdicts"]["harness error"]) == (None, COUNT)
    assert (
        done.err.splitlines()[-1]
        == "codemill: error: no sample could be judged: the server answered 500 ("
        + (done.err.splitlines()[-1].partition("500 (")[2])
    )
    server.status = 200
    done = codemill("eval", "humaneval", *options, "--json")
    assert (done.status, json.loads(done.out)["pass@1"]) == (0, 1.0)
    assert json.loads(done.out)["directory"] == result["directory"]


def test_an_endpoint_that_refuses_the_key(codemill: Run, data: Path, server: Server) -> None:
    server.status = 401
    done = codemill("eval", "humaneval", "--endpoint", server.url, "--model", "m", "--data", data)
    assert (done.status, done.out) == (1, "")
    assert "check the key in OPENAI_API_KEY" in done.err.splitlines()[-1]


def test_ctrl_c_and_the_same_command_again(data: Path, server: Server, tmp_path: Path) -> None:
    server.delay = 0.3
    command = [sys.executable, "-m", "codemill.cli", "eval", "humaneval", "--endpoint", server.url, "--model", "m"]
    command = [sys.executable, "-c", "import sys; from codemill.cli import main; sys.exit(main())", *command[3:]]
    command += ["--style", "base", "--data", str(data), "--concurrency", "1"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(server.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.endswith("stopped: the same command continues\n")
    assert "Traceback" not in err
    (directory,) = (tmp_path / "codemill-eval").iterdir()
    kept = len((directory / "samples.jsonl").read_text().splitlines())
    assert 1 <= kept < COUNT
    asked = len(server.asked)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["pass@1"], tmp_path / result["directory"]) == (1.0, directory)
    assert len(server.asked) - asked == COUNT - kept


# Words that run nothing


def test_list(codemill: Run) -> None:
    done = codemill("eval", "list")
    assert (done.status, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == list(registry.suite_names())
    rows = json.loads(codemill("eval", "list", "--json").out)
    assert [row["name"] for row in rows] == list(registry.suite_names())
    assert all(row["title"] and row["styles"] for row in rows)


def test_compare_and_report(codemill: Run, data: Path, tmp_path: Path) -> None:
    worse = samples(tmp_path / "worse.jsonl", [good(i) for i in range(4)])
    better = samples(tmp_path / "better.jsonl", [good(i) for i in range(COUNT)])
    for name, path in (("a", worse), ("b", better)):
        assert codemill("eval", "humaneval", "--samples", path, "--data", data, "--output", name).status == 0
    done = codemill("eval", "compare", "a", "b", "--output", "diff.html")
    assert done.status == 0
    assert "HumanEval/4, HumanEval/5" in done.out
    assert Path("diff.html").stat().st_size > 1000
    found = json.loads(codemill("eval", "compare", "a", "b", "--json").out)
    assert (found["a"], found["b"]) == (4 / 6, 1.0)
    Path("a/report.html").unlink()
    done = codemill("eval", "report", "a")
    assert (done.status, done.out) == (0, "a/report.html\n")
    assert Path("a/report.html").exists()
