"""`codemill agent docs`, with a model whose replies are written down."""

import json
import subprocess

import pytest

from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.workflows.docs import Documentation, write_docs
from codemill.agent.workflows.markdown_check import diagram_problem, page_problems, repaired
from codemill.cli import main
from codemill.commands import agent_options
from codemill.errors import CodemillError, UsageError

CART = '"""A cart."""\n\n\nclass Cart:\n    def total(self):\n        return 1\n\n\ndef make():\n    return Cart()\n'
PAGE = "# src/cart.py\n\nA cart: [`Cart`](src/cart.py#L4) has a [`total`](src/cart.py#L5).\n"
DIAGRAM = "```mermaid\nflowchart LR\n  A[Cart] --> B(total)\n```\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src/cart.py").write_text(CART)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def run(root, replies, **options):
    model = ScriptedModel(replies)
    return write_docs(Documentation(root, **options), model), model


def test_a_page_is_written_once(project):
    report, model = run(project, [PAGE + DIAGRAM])
    assert (report.written, report.failed, report.repaired) == (["src/cart.py"], {}, {})
    page = (project / "docs/modules/src/cart.py.md").read_text()
    assert "[`Cart`](../../../src/cart.py#L4)" in page
    assert (project / "docs/modules/src" / "../../../src/cart.py").resolve() == project / "src/cart.py"
    assert "    4 class Cart:" in model.seen[0][-1]["content"]
    report, model = run(project, [])
    assert (report.written, report.current, model.seen) == ([], ["src/cart.py"], [])


def test_a_changed_source_is_written_anew_from_the_old_page(project):
    run(project, [PAGE])
    (project / "src/cart.py").write_text(CART.replace("return 1", "return 2"))
    documentation = Documentation(project)
    assert [(each.source, each.reason) for each in documentation.stale(documentation.sources())] == [
        ("src/cart.py", "has changed")
    ]
    report, model = run(project, [PAGE.replace("A cart", "Another cart")])
    assert report.written == ["src/cart.py"]
    assert "A cart: [`Cart`]" in model.seen[0][-1]["content"]


def test_what_is_gone_is_removed_unless_it_was_edited(project):
    (project / "src/other.py").write_text(CART)
    run(project, [PAGE, PAGE])
    page = project / "docs/modules/src/other.py.md"
    page.write_text(page.read_text() + "By hand.\n")
    (project / "src/other.py").unlink()
    (project / "src/cart.py").unlink()
    report, _ = run(project, [])
    assert (report.removed, report.kept) == (["src/cart.py"], ["src/other.py"])
    assert page.exists()
    assert not (project / "docs/modules/src/cart.py.md").exists()


def test_wrong_links_and_diagrams_are_asked_for_again_and_then_left_out(project):
    wrong = PAGE + "\nSee [`make`](src/cart.py#L99).\n\n```mermaid\nflowchart LR\n  A[Cart --> B\n```\n"
    report, model = run(project, [wrong, PAGE])
    assert (report.written, report.repaired) == (["src/cart.py"], {})
    assert "leads to line 99, and the file has 10" in model.seen[1][-1]["content"]
    assert "Mermaid" in model.seen[1][-1]["content"]
    (project / "docs/modules/src/cart.py.md").unlink()
    report, _ = run(project, [wrong] * 3)
    assert len(report.repaired["src/cart.py"]) == 2
    page = (project / "docs/modules/src/cart.py.md").read_text()
    assert "See `make`." in page
    assert "mermaid" not in page


def test_a_model_without_a_page(project):
    report, _ = run(project, ["I cannot."] * 3)
    assert list(report.failed) == ["src/cart.py"]
    assert not (project / "docs/modules").exists()


def test_what_is_no_module(project):
    for name, text in {
        "secrets.py": CART,
        ".env": "A=1\n" * 9,
        ".env.sh": "A=1\n" * 9,
        "tests/test_cart.py": CART,
        "src/made.py": f"# Generated. DO NOT EDIT\n{CART}",
        "src/short.py": "x = 1\n",
        "ignored/a.py": CART,
        "notes.txt": CART,
        ".gitignore": "ignored/\n",
    }.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    assert set(Documentation(project).sources()) == {"src/cart.py", "secrets.py"}
    assert set(Documentation(project, path="src").sources()) == {"src/cart.py"}
    assert set(Documentation(project, path="src/cart.py").sources()) == {"src/cart.py"}


@pytest.mark.parametrize("options", [{"output": "../out"}, {"path": "../x"}, {"path": "nowhere"}, {"output": "."}])
def test_paths_outside_are_refused(project, options):
    with pytest.raises(UsageError):
        Documentation(project, **options)


def test_a_damaged_manifest(project):
    run(project, [PAGE])
    (project / "docs/modules/.manifest.json").write_text("{")
    with pytest.raises(CodemillError, match="delete it"):
        Documentation(project)


def lines_of(name):
    return CART.splitlines() if name == "a.py" else None


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("[x](a.py#L10)", ""),
        ("[x](a.py:4)", ""),
        ("[x](https://example.org) [y](#there)", ""),
        ("[x](a.py#L11)", "has 10"),
        ("[x](b.py)", "no file"),
        ("[`Cart`](a.py#L4)", ""),
        ("[`Cart`](a.py#L1)", "no Cart"),
        ("[`make()`](a.py#L9)", ""),
        ("```\n[x](b.py)\n```", ""),
        ("text\n```python\nx", "not closed"),
    ],
)
def test_links(page, problem):
    found = page_problems(page, lines_of)
    assert (problem in found[0]) if problem else not found
    assert "not closed" in problem or not page_problems(repaired(page, lines_of), lines_of)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("graph TD\nA[x] --> B{y}\nsubgraph s\nC\nend", ""),
        ('flowchart LR\nA["a ( b"] --> B', ""),
        ("sequenceDiagram\nA-)B: hello (there\nB--)A: x", ""),
        ("erDiagram\nA ||--o{ B : has\nB }|..|{ C : x\nC {\n string id\n}", ""),
        ("classDiagram\nclass A {\n +total() int\n}\nA <|-- B", ""),
        ("stateDiagram-v2\n[*] --> Still", ""),
        ("graph\nA --> B", "no kind of diagram"),
        ("diagram\nA --> B", "no kind of diagram"),
        ("graph TD\nA[x --> B", "not closed"),
        ("graph TD\nA[x) --> B", "too many"),
        ("graph TD\nsubgraph s\nA", "without end"),
        ("", "empty"),
    ],
)
def test_diagrams(code, problem):
    found = diagram_problem(code)
    assert problem in found
    assert bool(problem) == bool(found)


def test_the_verb(project, monkeypatch, capsys):
    assert main(["agent", "docs", "-C", str(project), "--check"]) == 1
    assert capsys.readouterr().out == "src/cart.py: has no page\n"
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel([PAGE]))
    assert main(["agent", "docs", "-C", str(project), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == ["src/cart.py"]
    assert main(["agent", "docs", "-C", str(project), "--check"]) == 0
