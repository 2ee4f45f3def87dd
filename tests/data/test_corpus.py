"""The standard library as text: what is read, what is left out, how it is split."""

from pathlib import Path

from codemill.data.corpus import MAX_BYTES, Module, split_modules, stdlib_modules


def test_the_library_is_read_without_tests_tables_and_installed_packages() -> None:
    modules = stdlib_modules()
    names = [module.name for module in modules]
    assert len(modules) > 300
    assert names == sorted(names)
    assert {"heapq", "json", "json.decoder", "asyncio.events"} <= set(names)
    for module in modules:
        assert not {"test", "tests", "site-packages", "idle_test"} & set(module.path.split("/"))
        assert "sysconfigdata" not in module.path
        assert "decoding_table = (" not in module.text
        assert len(module.text) <= MAX_BYTES


def test_unfit_files_are_left_out(tmp_path: Path) -> None:
    files = {
        "good.py": b"x = call()\n",
        "package/__init__.py": b"import good\n",
        "package/tests/test_good.py": b"import good\n",
        "latin.py": b"name = '\xe9'\n",
        "table.py": b"t = (" + b"0x12, " * 500 + b")\n",
        "huge.py": b"y = call()\n" * 30_000,
        "blank.py": b"\n",
        "_sysconfigdata_x.py": b"where = call()\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    modules = stdlib_modules(tmp_path)
    assert [(m.name, m.path) for m in modules] == [("good", "good.py"), ("package", "package/__init__.py")]


def test_split_keeps_packages_whole_and_is_stable() -> None:
    modules = [Module(f"{top}.{sub}", "", "") for top in map("p{}".format, range(400)) for sub in "ab"]
    train, held_out = split_modules(modules, 0.2)
    assert not {m.top_level for m in train} & {m.top_level for m in held_out}
    assert len(train) + len(held_out) == len(modules)
    assert 0.12 < len(held_out) / len(modules) < 0.28
    assert split_modules(reversed(modules), 0.2)[1] == held_out[::-1]
    assert {m.name for m in held_out} <= {m.name for m in split_modules(modules, 0.3)[1]}


def test_split_bounds() -> None:
    modules = [Module("a", "a.py", ""), Module("_a", "_a.py", "")]
    assert split_modules(modules, 0.0) == (modules, [])
    assert split_modules(modules, 1.0) == ([], modules)
    assert modules[0].top_level == modules[1].top_level
