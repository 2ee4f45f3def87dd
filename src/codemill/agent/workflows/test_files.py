"""Which files are tests, and which ones decide what tests are run."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

FOLDERS = frozenset({"test", "tests", "__tests__", "spec", "specs", "testdata", "__snapshots__"})
NAMES = (
    *("test_*.py", "*_test.py", "tests.py", "*_test.go", "*.test.*", "*.spec.*", "*_spec.rb", "*_test.rb"),
    *("*Test.java", "*Tests.java", "*Test.kt", "*Tests.cs", "*_test.cc", "*_test.cpp", "*_test.exs", "*.snap"),
)
# A new one of these can leave tests out, or make them pass.
CONFIGURATION = (
    *("conftest.py", "pytest.ini", "pytest.toml", "tox.ini", "noxfile.py", "sitecustomize.py", "usercustomize.py"),
    *("jest.config.*", "vitest.config.*", ".mocharc*", "karma.conf.*", "playwright.config.*", ".rspec", ".coveragerc"),
)
# These have more in them than how tests are run, so they may be changed; whoever reads the report should look.
MIXED = ("pyproject.toml", "setup.cfg", "package.json", "Makefile", "Cargo.toml", "go.mod", "pom.xml", "*.gradle")


def is_test(path: str) -> bool:
    """Whether a file, given relative to the project, is a test or what a test needs."""
    found = PurePosixPath(path)
    return any(part.lower() in FOLDERS for part in found.parts[:-1]) or _matches(found.name, NAMES)


def is_configuration(path: str) -> bool:
    """Whether a file decides what tests are run."""
    return _matches(PurePosixPath(path).name, CONFIGURATION)


def may_configure(path: str) -> bool:
    """Whether a file may decide that, among other things."""
    return _matches(PurePosixPath(path).name, MIXED)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
