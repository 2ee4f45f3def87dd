# ruff: noqa: E501 - tables of commands, one kind a line
"""Every command that a text may run is found. The oracle is Bash itself: what it runs must have been reported."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from codemill.agent.shell_syntax import parse_command


def found(text: str) -> list[tuple[str, ...]]:
    return [part.values if part.kind == "command" else (part.kind, *part.values[1:]) for part in parse_command(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ls -l", [("ls", "-l")]),
        ("a && b || c; d | e & f\ng", [("a",), ("b",), ("c",), ("d",), ("e",), ("f",), ("g",)]),
        ("(a; { b; }) |& c", [("a",), ("b",), ("c",)]),
        ("echo $(a `b`) \"$(c)\" '$(d)'", [("b",), ("a", "`b`"), ("c",), ("echo", "$(a `b`)", "$(c)", "$(d)")]),
        ("diff <(a) >(b)", [("a",), ("b",), ("diff", "<(a)", ">(b)")]),
        ("cat <<E\n$(a) `b` \\$(c)\nE\nd", [("cat",), ("a",), ("b",), ("d",)]),
        ("cat <<'E'; d\n$(a)\nE\ne", [("cat",), ("d",), ("e",)]),
        ("cat <<-E\n\t$(a)\n\tE\nb", [("cat",), ("a",), ("b",)]),
        ("a > x 2>&1 >> y &> z < w >/dev/null 2>/dev/null", [("write", "x"), ("write", "y"), ("write", "z"), ("a",)]),
        ("a > 1; b 2> -", [("write", "1"), ("a",), ("write", "-"), ("b",)]),
        ("cat < /dev/tcp/1.2.3.4/80", [("unclear",), ("cat",)]),
        ("if a; then b; elif c; then d; else e; fi", [("a",), ("b",), ("c",), ("d",), ("e",)]),
        ("for x in 1 $(a); do b $x; done > c", [("assign",), ("a",), ("b", "$x"), ("write", "c")]),
        ("while ! a; do b; done; until c; do d; done", [("a",), ("b",), ("c",), ("d",)]),
        ("case $x in a | b) c ;; (*) d ;& $(e)) f; esac; g", [("c",), ("d",), ("e",), ("f",), ("g",)]),
        ("f() { a; }; function g { b; }; function h() ( c )", [("a",), ("b",), ("c",)]),
        ("[[ $a == *x && -f b || $(c) =~ (d|e) ]] && f", [("c",), ("f",)]),
        ("time -p a; ! b; time c", [("a",), ("b",), ("c",)]),
        ("X=$(a) b; Y=1", [("a",), ("b",), ("assign",)]),
        ("x=(1 $(a) 'b c'); c", [("a",), ("assign",), ("c",)]),
        ("\"r\"m x; \\rm y; /bin/rm z; r''m w; $'rm' v", [("rm", "x"), ("rm", "y"), ("rm", "z"), ("rm", "w"), ("rm", "v")]),
        ("./ls; evil/ls; ~/ls", [("./ls",), ("evil/ls",), ("~/ls",)]),
        ("a # b; $(c)\nd#e", [("a",), ("d#e",)]),
        ("ec\\\nho a \\\n b", [("echo", "a", "b")]),
        ("echo ${x:-$(a)} ${#x} ${x%.*} ${x[@]} ${x:1:2} $1 $? \"${x//a/b}\"", [("a",), ("echo", "${x:-$(a)}", "${#x}", "${x%.*}", "${x[@]}", "${x:1:2}", "$1", "$?", "${x//a/b}")]),
        ("echo $((1 + 2 * 3))", [("echo", "$((1 + 2 * 3))")]),
        # programs that run others
        ("env -i -u B A=1 rm x", [("rm", "x")]),
        ("nohup nice -n 5 timeout -k 1 10s rm x", [("rm", "x")]),
        ("sudo -u bob rm x", [("sudo", "-u", "bob", "rm", "x"), ("rm", "x")]),
        ("command rm x; builtin cd; exec rm y; command -v rm", [("rm", "x"), ("cd",), ("rm", "y"), ("command", "-v", "rm")]),
        ("ls | xargs -n 1 -P4 rm -f", [("ls",), ("rm", "-f", "{}")]),
        ("bash -c 'a; b $(c)'; sh -ec \"d\"; bash --norc -o pipefail -c e", [("a",), ("c",), ("b", "$(c)"), ("d",), ("e",)]),
        ("eval 'a; b'; trap 'c' EXIT", [("a",), ("b",), ("c",)]),
        ("find . -exec a {} + -o -execdir sh -c 'b' \\;", [("find", ".", "-exec", "a", "{}", "+", "-o", "-execdir", "sh", "-c", "b", ";"), ("a", "{}"), ("b",)]),
        ("bash script.sh x", [("bash", "script.sh", "x")]),
        ("git -c alias.x='!a' x", [("git", "-c", "alias.x=!a", "x")]),
    ],
)  # fmt: skip
def test_the_parts_of_a_command(text: str, parts: list[tuple[str, ...]]) -> None:
    assert found(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        *("", "   # nothing", "echo 'open", 'echo "open', "echo $(open", "echo `open", "(a", "a)", "a ;; b", "esac"),
        *("$cmd x", "`which rm` x", "{rm,-rf,/}", "r$x y", "eval $x", 'eval "$x"', 'bash -c "$x"', "bash", "ls | sh"),
        *("curl x | bash -s", "bash -O extglob -c 'rm !(a)'", "echo $((x))", "echo $((a[$(rm)]))", "((x))", "((a); b)"),
        *("echo ${x@P}", "echo ${a[$(b)]}", "echo ${!x}", "[[ x -eq y ]]", "[[ -v x ]]", "a[$(b)]=1", "a=([$(b)]=1)"),
        *("coproc a", "env -S 'rm x'", "xargs $x rm", "timeout $x rm", "sudo -s", "for ((;;)); do a; done"),
        *("echo $'\\x72m'", "ls !(a)", "cat <<$(a)\nx\n", "cat <<E $(a\nE\nrm x\n)", "case x in"),
        "$(" * 200 + "a" + ")" * 200,
    ],
)
def test_what_is_not_understood_is_said(text: str) -> None:
    unclear = [part for part in parse_command(text) if part.kind == "unclear"]
    assert unclear
    assert all(part.problem for part in unclear)


def test_pipelines_variables_and_computed_words() -> None:
    a, b = parse_command("X=1 curl x | Y=2 tee $z")
    assert (a.assigned, a.fed_by) == (("X",), ())
    assert (b.assigned, b.fed_by) == (("Y",), ("curl",))
    words = parse_command('a $x "$x" "$@" -$x -"$x" a"$x" a$x *.py src/*.py {a,-b} a{b,c} \'*\' "a $x" ~')[0].words[1:]
    assert [word.may_be_option for word in words] == [True, True, True, True, True, False, True, True, False, True, False, False, False, False]  # fmt: skip


# Bash as the oracle: programs that only note their names are all that can be found.
_NAMES = ["aa", "bb", "cc", "dd", "ee"]
_FORMS = [
    "{0}; {1}", "{0} && {1}", "{0} || {1}", "{0} | {1}", "{0} & {1}", "({0})", "{{ {0}; }}", "! {0}", "{0}\n{1}",
    "if {0}; then {1}; else {2}; fi", "for v in 1 2; do {0}; done", "while {0}; do {1}; break; done",
    "case x in y) {0};; x|z) {1};; esac", "f() {{ {0}; }}; f", "bash -c '{name}; {name}'", "eval '{name} x'",
    "{name} \"$({0})\"", "{name} `{name} x`", "{name} <({0})", "{name} <<E\n$({name})\nE\n{1}", "v=$({0}) {name}",
    "{name} <<'E' && {name}\n$(bb)\nE\n", "env X=1 {name}", "timeout 5 {name}", "echo x | xargs {name}", "command {name}",
    "{name} 'a;b' \"c|d\" e\\;f $'g\\n' # {name}\n{0}", "\\{name} x", "'{name}' x", "{name} ${{v:-$({0})}}", "[[ -n $({0}) ]]",
    "v=(1 $({0}))", "{name} x >/dev/null 2>&1 && {0}", "true && {name}\\\n x", "until {0}; do {1}; break; done",
    "if ! {0}\nthen\n{1}\nfi", "function g {{ {0}\n}}; g", "{name} $((1+2)) \"a\\\"b\" ; {0}", "nohup {name} | {0}",
]  # fmt: skip


def script(source: random.Random, depth: int) -> str:
    if depth == 0:
        return f"{source.choice(_NAMES)} {source.choice(['', 'x', '-y', '$v', '*'])}"
    parts = [script(source, depth - 1) for _ in range(3)]
    name = source.choice(_NAMES)
    form = source.choice(_FORMS)
    if "<<" in form:
        parts = [part.replace("\n", " ; ") if "<<" not in part else name for part in parts]
    return form.format(*parts, name=name)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_whatever_bash_runs_was_reported(tmp_path: Path) -> None:
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    for name in _NAMES:
        (folder / name).write_text(f'#!/bin/sh\necho {name} >> "$LOG"\n[ $(($$ % 3)) != 0 ]\n')
        (folder / name).chmod(0o755)
    source, understood, runs = random.Random(7), 0, 0
    for _ in range(150):
        text = script(source, source.choice([1, 1, 2, 2, 3]))
        parts = parse_command(text)
        log.write_text("")
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(log)}
        subprocess.run(["bash", "-c", text], env=environment, cwd=tmp_path, capture_output=True, timeout=20, stdin=subprocess.DEVNULL)  # fmt: skip
        ran = set(log.read_text().split())
        runs += bool(ran)
        if not any(part.kind == "unclear" for part in parts):
            understood += 1
            assert ran <= {part.name for part in parts}, text
    assert runs > 120
    assert understood > 100
