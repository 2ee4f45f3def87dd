"""A process with one engine in it. It answers each line of JSON on its standard input with a line on standard output.

    python -m codemill.bench.worker ENGINE OPTIONS [prepare]

With `prepare` it only writes the model that the engine reads, in a process of its own because that takes more memory
than running it. Otherwise the first line it writes says that the engine is ready, or why it is not. Only the engine
needs more than the standard library.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Any, TextIO

from codemill.bench.engines import ENGINES, OURS, BenchEngine, EngineOptions, create
from codemill.errors import CodemillError, UsageError


def peak_memory() -> int:
    """The most that was resident, in bytes; 0 where the system does not say.

    Not `getrusage` where it can be helped: on Linux that counts what the parent had before this program started.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


def forget_peak() -> None:
    """Have `peak_memory` count from now on, where the system can do that."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def make_prompts(request: dict[str, Any], vocab_size: int) -> list[list[int]]:
    """Random prompts, none the beginning of another; the ids of control tokens, which come last, are left out."""
    generator = random.Random(request["seed"])
    ids = range(vocab_size // 100, max(vocab_size // 100 + 1, int(0.95 * vocab_size)))
    return [generator.choices(ids, k=request["num_prompt"]) for _ in range(request["batch"])]


def answer(engine: BenchEngine, request: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    if request.get("forget_peak"):
        forget_peak()
        return {}
    return asdict(engine.run(make_prompts(request, vocab_size), request["num_new"], request["setting"]))


def prepare_apart(name: str) -> None:
    """Have the model written that the engine reads, if it reads one of ours. Raises CodemillError if that fails."""
    if not hasattr(import_module(ENGINES[name].module), "prepare"):
        return
    command = [sys.executable, "-P", "-m", "codemill.bench.worker", *sys.argv[1:3], "prepare"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CodemillError(done.stdout.strip() or f"writing its model ended with status {done.returncode}")


def prepare(name: str, options: EngineOptions, replies: TextIO) -> int:
    """Write the model -> the exit status; what went wrong goes to `replies`."""
    try:
        import_module(ENGINES[name].module).prepare(options)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells the user
        print(refusal(name, error)["error"], file=replies, flush=True)
        return 1
    return 0


def set_up(name: str, options: EngineOptions) -> None:
    """What the engine needs in this process before it loads a model."""
    module = import_module(ENGINES[name].module)
    if hasattr(module, "set_up"):
        module.set_up(options)


def load(name: str, options: EngineOptions) -> tuple[BenchEngine, dict[str, Any]]:
    """The engine, and what the first line says of it."""
    __import__(ENGINES[name].package)
    if name == OURS:
        import torch  # noqa: F401 - so that load_seconds and the model's memory are the model's alone
    prepare_apart(name)
    set_up(name, options)
    empty, start = peak_memory(), time.perf_counter()
    engine = create(name, options)
    seconds = time.perf_counter() - start
    ready = {"settings": list(engine.settings), "load_seconds": seconds, "empty_memory": empty}
    return engine, {**ready, "peak_memory": peak_memory(), "weights": dict(engine.weights)}


def refusal(name: str, error: Exception) -> dict[str, Any]:
    """Why the engine cannot be measured, in one line."""
    if isinstance(error, ModuleNotFoundError) and name != OURS:
        return {"error": f"{name} is not installed in {sys.executable} (no module {error.name})", "missing": True}
    is_ours = isinstance(error, CodemillError | UsageError)
    text = str(error) if is_ours else f"{type(error).__name__}: {error}"
    return {"error": " ".join(text.split()), "usage": isinstance(error, UsageError)}


def serve(name: str, options: EngineOptions, replies: TextIO) -> None:
    def reply(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=replies, flush=True)

    try:
        engine, ready = load(name, options)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells the user
        reply(refusal(name, error))
        return
    reply(ready)
    for line in sys.stdin:
        try:
            done = answer(engine, json.loads(line), int(options.config["vocab_size"]))
            reply({**done, "peak_memory": peak_memory()})
        except Exception as error:  # noqa: BLE001
            reply(refusal(name, error))


def end_with_parent() -> None:
    """End this process soon after its parent: one that was killed cannot end its workers."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    end_with_parent()
    name, options = sys.argv[1], EngineOptions(**json.loads(sys.argv[2]))
    # Engines print what they like; the answers have a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if sys.argv[3:] == ["prepare"]:
        sys.exit(prepare(name, options, replies))
    serve(name, options, replies)


if __name__ == "__main__":
    main()
