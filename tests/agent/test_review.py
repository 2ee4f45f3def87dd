"""`codemill agent review`, with a model whose replies are written down."""

import json
import os
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from agent.fakes import call
from codemill.agent.budget import Budget
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.stops import ContextTooLong
from codemill.agent.workbench import AgentOptions
from codemill.agent.workflows.git_diff import read_diff
from codemill.agent.workflows.review import SEVERITIES, Finding, Review, review, shown, split
from codemill.agent.workflows.review_output import sarif_object
from codemill.cli import main
from codemill.commands import agent_options
from codemill.errors import CodemillError, UsageError

LINES = "".join(f"line {number}\n" for number in range(1, 101))


def git(root, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository in which a.py has lines 50 and 90 changed, and b.py is new and staged."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a.py").write_text(LINES)
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    (root / "a.py").write_text(LINES.replace("line 50\n", "worse 50\n").replace("line 90\n", ""))
    (root / "b.py").write_text("import os\nos.remove('x')\n")
    git(root, "add", "b.py")
    return root


def finding(file="a.py", line=50, severity="high", title="It is worse", **more):
    return {"file": file, "line": line, "severity": severity, "title": title, "detail": "Since it is.", **more}


def answer(*findings):
    return f"Here it is:\n```json\n{json.dumps({'findings': findings})}\n```"


def run(root, replies, **options):
    model = ScriptedModel(replies)
    return review(read_diff(root), AgentOptions(root, budget=Budget(5)), model, **options), model


def test_a_diff_is_read(project):
    files = {file.path: file for file in read_diff(project)}
    assert list(files) == ["a.py", "b.py"]
    assert [(hunk.start, hunk.count) for hunk in files["a.py"].hunks] == [(47, 7), (87, 6)]
    assert "    50 +worse 50" in shown(files["a.py"])
    assert "       -line 50" in shown(files["a.py"])
    assert "    90  line 91" in shown(files["a.py"])


def test_what_is_staged_and_ranges(project):
    assert [file.path for file in read_diff(project, staged=True)] == ["b.py"]
    git(project, "commit", "-qam", "two")
    assert read_diff(project) == []
    assert [file.path for file in read_diff(project, "HEAD~1..HEAD")] == ["a.py", "b.py"]
    with pytest.raises(UsageError, match="no such range"):
        read_diff(project, "nowhere..HEAD")
    with pytest.raises(UsageError, match="no such range"):
        read_diff(project, "--output=stolen")
    assert not (project / "stolen").exists()


def test_odd_names_and_kinds(project):
    names = ['na"me.py', "with space.py", "tab\t.py", "é.py", "empty.py", "b/b.py"]
    (project / "b").mkdir()
    for name in names:
        (project / name).write_text("" if name == "empty.py" else "x = 1\n")
    (project / "data.bin").write_bytes(b"\0\1\2")
    git(project, "add", "-A")
    files = {file.path: file for file in read_diff(project)}
    assert set(names) <= set(files)
    assert files["data.bin"].is_binary
    git(project, "commit", "-qam", "two")
    git(project, "mv", "with space.py", "moved here.py")
    git(project, "rm", "-q", "é.py")
    files = read_diff(project)
    assert sorted((file.path, file.is_deleted) for file in files) == [("moved here.py", False), ("é.py", True)]


def test_a_repository_without_a_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x\n")
    git(tmp_path, "add", ".")
    assert [file.path for file in read_diff(tmp_path)] == ["a.py"]


def test_no_repository(tmp_path):
    with pytest.raises(CodemillError, match="git"):
        read_diff(tmp_path, "HEAD")


def test_findings_are_kept_where_they_lie_in_the_diff(project):
    result, model = run(
        project,
        [
            answer(
                finding(),
                finding(line=53, severity="low"),
                finding(line=54, title="Beyond the region"),
                finding(line=10_000, title="No such line"),
                finding(file="c.py", title="No such file"),
                finding(file="b/b.py", line=2, severity="critical", suggestion="Ask first."),
            )
        ],
    )
    assert [(each.file, each.line) for each in result.findings] == [("b.py", 2), ("a.py", 50), ("a.py", 53)]
    assert [each.rpartition(": ")[2] for each in result.dropped] == [
        "Beyond the region",
        "No such line",
        "No such file",
    ]
    assert "worse 50" in model.seen[0][-1]["content"]


def test_the_model_may_look_around_but_not_change(project):
    steps = [call("read_file", absolute_path="b.py"), call("write_file", file_path="b.py", content=""), answer()]
    result, model = run(project, steps)
    assert result.findings == []
    told = [message["content"] for message in model.seen[-1] if message["role"] == "tool"]
    assert "os.remove" in told[0]
    assert "no tool 'write_file'" in told[1]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("All is well.", "no JSON object"),
        (answer({**finding(), "line": "50"}), "line must be a number"),
        (answer({**finding(), "severity": "bad"}), "severity must be one of"),
        (answer({**finding(), "title": " "}), "title must be a text"),
        ('{"findings": 3}', "must be a list"),
    ],
)
def test_a_wrong_form_is_asked_again(project, wrong, told):
    result, model = run(project, [wrong, answer(finding())])
    assert [each.line for each in result.findings] == [50]
    assert told in model.seen[1][-1]["content"]


def test_what_was_not_reviewed_is_no_success(project):
    result, _ = run(project, ["no"] * 3)
    assert list(result.failed) == ["a.py, b.py"]
    assert (result.exit_status("high"), result.exit_status(None)) == (3, 3)


def test_a_part_that_is_too_long_for_the_model_is_told(project):
    def too_long(messages):
        raise ContextTooLong("it does not fit")

    result, _ = run(project, too_long)
    assert list(result.failed) == ["a.py, b.py"]
    assert result.exit_status("high") == 3


def test_large_diffs_go_in_parts(project):
    result, model = run(project, [answer(finding()), answer(), answer(finding(file="b.py", line=1))], part=150)
    assert [len(messages) for messages in model.seen] == [2, 2, 2]
    assert [(each.file, each.line) for each in result.findings] == [("a.py", 50), ("b.py", 1)]
    files = read_diff(project)
    assert [[file.path for file in part] for part in split(files, 10**6)] == [["a.py", "b.py"]]
    assert "".join(hunk.numbered for part in split(files, 1) for file in part for hunk in file.hunks) == "".join(
        hunk.numbered for file in files for hunk in file.hunks
    )


def test_files_that_nobody_wrote_and_secrets_are_skipped(project):
    for name, text in {
        "package-lock.json": "{}",
        "api_pb2.py": "x",
        ".env": "PASSWORD=hunter2",
        "made.py": "# Code generated by x. DO NOT EDIT.\n",
        "data.bin": "\0",
    }.items():
        (project / name).write_text(text)
    git(project, "add", "-A")
    git(project, "rm", "-qf", "a.py")
    result, model = run(project, [answer()])
    assert set(result.skipped) == {"package-lock.json", "api_pb2.py", ".env", "made.py", "data.bin", "a.py"}
    assert "hunter2" not in str(model.seen)
    assert result.num_files == 1


@pytest.mark.parametrize(
    ("severity", "limit", "status"), [("high", "high", 1), ("medium", "high", 0), ("low", "low", 1)]
)
def test_exit_status(project, severity, limit, status):
    result, _ = run(project, [answer(finding(severity=severity))])
    assert result.exit_status(limit) == status
    assert result.exit_status(None) == 0


# What SARIF 2.1.0 (OASIS, sections 3.13 to 3.30) requires of the properties that we write.
MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}


def strict(**properties):
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": sorted(set(properties) - {"invocations", "results", "properties", "columnKind"}),
    }


LOCATION = strict(
    physicalLocation=strict(
        artifactLocation=strict(uri={"type": "string", "format": "uri-reference"}),
        region=strict(startLine={"type": "integer", "minimum": 1}),
    )
)
RESULT = strict(
    ruleId={"type": "string"},
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    message=MESSAGE,
    locations={"type": "array", "items": LOCATION},
)
RULE = strict(
    id={"type": "string"},
    shortDescription=MESSAGE,
    defaultConfiguration=strict(level=LEVEL),
    properties={"type": "object"},
)
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "$schema": {"type": "string", "format": "uri"},
        "runs": {
            "type": "array",
            "items": strict(
                tool=strict(
                    driver=strict(
                        name={"type": "string"},
                        semanticVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
                        rules={"type": "array", "uniqueItems": True, "items": RULE},
                    )
                ),
                invocations={
                    "type": "array",
                    "items": strict(
                        executionSuccessful={"type": "boolean"},
                        toolExecutionNotifications={
                            "type": "array",
                            "items": strict(level=LEVEL, message=MESSAGE),
                        },
                    ),
                },
                columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                results={"type": "array", "items": RESULT},
            ),
        },
    },
}


def test_sarif(project):
    result, _ = run(project, [answer(finding(), finding(file="b.py", line=1, severity="low", suggestion="No."))])
    for each in (result, Review(), Review(failed={"a b.py": "why"})):
        log = sarif_object(each)
        jsonschema.Draft7Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(log)
        rules = log["runs"][0]["tool"]["driver"]["rules"]
        assert all(rules[entry["ruleIndex"]]["id"] == entry["ruleId"] for entry in log["runs"][0]["results"])
    assert not sarif_object(Review(failed={"a": "why"}))["runs"][0]["invocations"][0]["executionSuccessful"]


def test_sarif_by_the_schema_of_the_standard():
    """It is in the npm package @microsoft/jest-sarif, lib/schemas/sarif-2.1.0-rtm.5.json."""
    path = os.environ.get("SARIF_SCHEMA")
    if path is None:
        pytest.skip("set SARIF_SCHEMA to the schema's path: npm pack @microsoft/jest-sarif, tar xf")
    schema = json.loads(Path(path).read_text())
    assert schema["title"].startswith("Static Analysis Results Format (SARIF) Version 2.1.0")
    check = jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())
    found = [Finding(name, 1, severity, "t", "d", "s") for name in ODD_NAMES for severity in SEVERITIES]
    for each in (Review(found), Review(), Review(failed={"a b.py": "why"}, skipped={"x": "binary"}, dropped=["y"])):
        check.validate(sarif_object(each))
    wrong = sarif_object(Review(found))
    wrong["runs"][0]["results"][0]["level"] = "bad"
    assert not check.is_valid(wrong)


ODD_NAMES = ("a.py", "a b/c%d.py", "é#?.py", "../x", "a\\b", "a:b", ":a", "\udcff.py")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_places_in_sarif_lead_back_to_the_file(name):
    place = sarif_object(Review([Finding(name, 1, "low", "t", "d")]))["runs"][0]["results"][0]["locations"][0]
    uri = place["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(urlsplit(uri).path, errors="surrogateescape") == name
    assert urlsplit(uri)[0:2] == ("", "")


@pytest.mark.parametrize("form", [(), ("--json",), ("--sarif",)])
def test_the_verb(project, monkeypatch, capsys, form):
    (project / "new.py").write_text("x")
    replies = [answer(finding(title="A \x1b[2J trick"))]
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel(replies))
    assert main(["agent", "review", "-C", str(project), *form]) == 1
    out, err = capsys.readouterr()
    assert "1 findings (1 high) in 2 files" in err
    assert "new.py (not tracked" in err
    assert "\x1b" not in out + err
    if not form:
        assert out.startswith("high     a.py:50  A \\x1b[2J trick\n         Since it is.\n")
    else:
        assert json.loads(out).get("version") == (None if form == ("--json",) else "2.1.0")


def test_the_verb_when_nothing_is_changed(project, monkeypatch, capsys):
    git(project, "commit", "-qam", "two")
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel([]))
    assert main(["agent", "review", "-C", str(project)]) == 0
    assert "0 findings in 0 files" in capsys.readouterr().err
    assert main(["agent", "review", "-C", str(project), "--fail-on", "bad"]) == 2
