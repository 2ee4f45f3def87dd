"""HumanEvalPack's programs in Go: imports as they are used, and what the tests use of testify."""

import re
from collections.abc import Mapping
from typing import Any

from codemill.eval.brace_text import code_only, without_block
from codemill.eval.humanevalpack_dialects import END, Dialect, helpers

_DEFINITION = r"\bfunc\s+{name}\b"
_TEST = re.compile(r"^[ \t]*func\s+(Test\w*)\s*\(", re.MULTILINE)
_IMPORTS = re.compile(
    r"^[ \t]*+import[ \t]*+(?:\((?P<many>[^()]*+)\)|(?P<one>[^\n(\"]*+\"[^\"\n]++\"))[^\n]*+", re.MULTILINE
)
_IMPORT = re.compile(r"(?:(?<![\w.])(?P<alias>[\w.]++)[ \t]++)?\"(?P<path>[^\"\n]++)\"")
_PACKAGE = re.compile(r"^[ \t]*+package[ \t]++\w++[ \t]*+$", re.MULTILINE)
# The authors add the first ten where they are used and not imported.
_STANDARD = (
    "math strings fmt strconv time bytes regexp sort math/rand crypto/md5 bufio container/heap container/list "
    "container/ring context crypto/sha1 crypto/sha256 encoding/binary encoding/hex encoding/json errors io math/big "
    "math/bits math/cmplx os reflect sync unicode unicode/utf8 testing"
).split()
# testify's `assert.New(t).Equal` and relatives, which compare as `assert.ObjectsAreEqual` does. A difference panics.
_ASSERT = """
type codemillMaker struct{}
type codemillChecks struct{}

var assert codemillMaker

func (codemillMaker) New(_ *testing.T) codemillChecks { return codemillChecks{} }

func codemillEqual(expected, actual interface{}) bool {
	want, isBytes := expected.([]byte)
	if have, ok := actual.([]byte); isBytes && ok && want != nil && have != nil {
		return string(want) == string(have)
	}
	return codemillReflect.DeepEqual(expected, actual)
}

func codemillMust(holds bool, expected, actual interface{}) {
	if !holds {
		panic(codemillFmt.Sprintf("expected: %#v, actual: %#v", expected, actual))
	}
}

func (codemillChecks) Equal(expected, actual interface{}, _ ...interface{}) bool {
	codemillMust(codemillEqual(expected, actual), expected, actual)
	return true
}

func (codemillChecks) NotEqual(expected, actual interface{}, _ ...interface{}) bool {
	codemillMust(!codemillEqual(expected, actual), expected, actual)
	return true
}

func (codemillChecks) True(value bool, _ ...interface{}) bool {
	codemillMust(value, true, value)
	return true
}

func (codemillChecks) False(value bool, _ ...interface{}) bool {
	codemillMust(!value, false, value)
	return true
}

func (codemillChecks) InDelta(expected, actual interface{}, delta float64, _ ...interface{}) bool {
	number := codemillReflect.TypeOf(delta)
	want := codemillReflect.ValueOf(expected).Convert(number).Float()
	have := codemillReflect.ValueOf(actual).Convert(number).Float()
	codemillMust(want-have <= delta && have-want <= delta, expected, actual)
	return true
}
"""
_ASSERT_IMPORTS = ('codemillReflect "reflect"', 'codemillFmt "fmt"', '"testing"')


def _go(fields: Mapping[str, Any], answer: str, whole: bool) -> str:
    answer = without_block(answer, "go", r"\bfunc\s+main\s*\(")
    start = helpers(fields["prompt"], _DEFINITION, answer, "go") if whole else fields["prompt"]
    written = "\n".join([fields.get("test_setup") or "", fields.get("import") or "", start, answer, fields["test"]])
    code = _PACKAGE.sub("", _IMPORTS.sub("", f"{start}{answer}\n{fields['test']}"))
    names = _TEST.findall(code_only(fields["test"], "go"))
    calls = "".join(f"\t{name}(nil)\n" for name in names)
    imports = "".join(f"\t{line}\n" for line in dict.fromkeys([*_ASSERT_IMPORTS, *_used(written, code)]))
    return f'package main\n\nimport (\n{imports})\n\n{code}\n{_ASSERT}\nfunc main() {{\n{calls}\tprintln("{END}")\n}}\n'


def _used(written: str, code: str) -> list[str]:
    """The import lines for the packages that the code uses: Go takes no others."""
    lines: dict[str, str] = {}
    for path in _STANDARD:
        lines.setdefault(path.rpartition("/")[2], f'"{path}"')
    for block in _IMPORTS.finditer(written):
        for found in _IMPORT.finditer(block["many"] or block["one"]):
            name = found["alias"] or found["path"].rpartition("/")[2]
            lines[name] = f'{found["alias"]} "{found["path"]}"' if found["alias"] else f'"{found["path"]}"'
    lines.pop("assert", None)
    used = {".", *re.findall(r"\b(\w++)\.[A-Z]", code_only(code, "go"))}
    return [line for name, line in lines.items() if name in used]


GO = Dialect("go", "Go", "go", ("go", "golang"), _DEFINITION, ("\nfunc ", "\ntype "), _go, tests=_TEST)
