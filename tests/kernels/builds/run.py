"""Tests of the C++ library in other builds than the installed one: `run.py BUILD [ARGUMENT OF PYTEST...]`.

neon      the library for aarch64, run by an emulator that has this process's memory (emulated_host.cpp); the tests are
          the same, and run here. CODEMILL_EMULATED_CPU names another processor than `max`, which has everything.
sanitize  with GCC's AddressSanitizer and UndefinedBehaviorSanitizer.
threads   the thread pool alone, in a program for ThreadSanitizer.

Nothing of this touches the installed library.
"""

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sysconfig import get_config_var

ROOT = Path(__file__).resolve().parents[3]
OWN = Path(__file__).parent
KERNELS = Path("src/codemill/kernels/cpu")
# Whatever calls the library with shapes of its own; every file has sizes that are multiples of nothing.
TESTS = [
    "tests/kernels",
    "tests/models/test_fused.py",
    "tests/models/test_gated_deltanet.py",
    "tests/engine/test_batch_invariance.py",
    "tests/engine/test_kv_cache_dtype.py",
    "tests/engine/test_quantized_engine.py",
]
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
PACKAGES = "g++-aarch64-linux-gnu qemu-user-static"
# A forked child would share the emulated memory with its parent instead of having a copy.
NOT_EMULATED = "tests/kernels/test_paged_attention.py::test_after_a_fork_and_at_exit"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    builds = {"neon": run_emulated, "sanitize": run_sanitized, "threads": run_threads}
    parser.add_argument("build", choices=builds)
    build, pytest_arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        return builds[build.build](Path(folder), pytest_arguments)


def run_emulated(folder: Path, pytest_arguments: Sequence[str]) -> int:
    if missing := [tool for tool in (CROSS_COMPILER, EMULATOR) if shutil.which(tool) is None]:
        sys.exit(f"error: {' and '.join(missing)} missing; on Debian: apt-get install {PACKAGES}")
    guest, host = folder / "guest", place_library(folder)
    calls, stubs = folder / "calls.cpp", folder / "stubs.cpp"
    calls.write_text(dispatcher())
    stubs.write_text(forwarders())
    sources = [OWN / "emulated_guest.cpp", calls, *library_sources()]
    compile_all(CROSS_COMPILER, sources, [f"-I{OWN}"], ["-static"], guest)
    compile_all("g++", [OWN / "emulated_host.cpp", stubs], ["-O2", f"-I{OWN}"], ["-shared"], host)
    preloaded = {"LD_PRELOAD": str(host), "CODEMILL_EMULATED": str(guest), "PYTHONMALLOC": "malloc"}
    return run_tests(folder, preloaded, ["--deselect", NOT_EMULATED, *pytest_arguments])


def run_sanitized(folder: Path, pytest_arguments: Sequence[str]) -> int:
    compile_all("g++", library_sources(), ["-O2", *SANITIZERS], ["-shared", *SANITIZERS], place_library(folder))
    runtimes = (
        run_for_output("g++", f"-print-file-name={name}") for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    )
    preloaded = {
        "LD_PRELOAD": " ".join(runtimes),
        # Python frees little at its end. A thread's memory may be reused by dlopen'ed libraries without a word.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    return run_tests(folder, preloaded, pytest_arguments)


def run_threads(folder: Path, _: Sequence[str]) -> int:
    sources = [OWN / "thread_pool_stress.cpp", ROOT / KERNELS / "thread_pool.cpp"]
    program, flags = folder / "stress", ["-fsanitize=thread", "-O1", "-g1", f"-I{ROOT / KERNELS}"]
    compile_all("g++", sources, flags, flags, program)
    # ThreadSanitizer wants its addresses where a kernel with many random bits may put others.
    command, at_once = ["setarch", "--addr-no-randomize", program], {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, env=os.environ | at_once, check=False).returncode


def place_library(folder: Path) -> Path:
    """A copy of the package's Python files -> where the library belongs in it."""
    package = folder / "package"
    shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    return package / KERNELS.relative_to("src") / f"library{get_config_var('EXT_SUFFIX')}"


def run_tests(folder: Path, environment: dict[str, str], arguments: Sequence[str]) -> int:
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    # With pytest's own capture of files, the last words of a process that dies would be lost.
    options = ["-q", "-p", "no:cacheprovider", "--capture=sys", "--ignore=tests/kernels/test_builds.py"]
    command = [sys.executable, "-m", "pytest", *options, *arguments, *([] if paths else TESTS)]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "package")}
    return subprocess.run(command, cwd=ROOT, env=os.environ | threads | environment, check=False).returncode


def library_sources() -> list[Path]:
    return [ROOT / source for source in extension()["sources"]]


def extension() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["tool"]["setuptools"]["ext-modules"][0]


def compile_all(
    compiler: str, sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str], to: Path
) -> None:
    """With the flags of the installed library, and after them others."""
    flags = [*extension()["extra-compile-args"], "-fPIC", *flags]
    objects = [to.parent / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        subprocess.run([compiler, *flags, "-c", source, "-o", to], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run([compiler, *objects, *link_flags, "-pthread", "-o", to], check=True)


def run_for_output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# The entry points, as Python declares them: their C++ types, and the member of a Slot that each is passed in.
TYPES = {
    ctypes.c_void_p: ("void*", "pointer"),
    ctypes.c_size_t: ("size_t", "size"),
    ctypes.c_int: ("int", "integer"),
    ctypes.c_float: ("float", "number"),
}


def entry_points() -> list[tuple[str, list[tuple[str, str]]]]:
    from codemill.kernels.cpu_library import _ARGUMENTS

    return [(name, [TYPES[argument] for argument in arguments]) for name, arguments in _ARGUMENTS.items()]


def dispatcher() -> str:
    lines, cases = ['#include "emulated.h"'], []
    for number, (name, arguments) in enumerate(entry_points()):
        lines.append(f'extern "C" int {name}({", ".join(kind for kind, _ in arguments)});')
        values = ", ".join(f"slots[{i}].{member}" for i, (_, member) in enumerate(arguments))
        cases.append(f"    if (function == {number}) return {name}({values});")
    signature = "int codemill_dispatch(int function, const emulated::Slot* slots)"
    return "\n".join([*lines, f"{signature} {{", *cases, "    return -1;", "}", ""])


def forwarders() -> str:
    lines = ['#include "emulated.h"']
    for number, (name, arguments) in enumerate(entry_points()):
        parameters = ", ".join(f"{kind} x{i}" for i, (kind, _) in enumerate(arguments))
        slots = ", ".join(f"{{.{member} = x{i}}}" for i, (_, member) in enumerate(arguments))
        lines.append(f'extern "C" __attribute__((visibility("default"))) int {name}({parameters}) {{')
        lines.append(f"    const emulated::Slot slots[] = {{{slots}}};")
        lines.append(f"    return codemill_forward({number}, slots, {len(arguments)});\n}}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
