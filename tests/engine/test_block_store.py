"""The prefix cache on disk gives back what was put, or nothing: through damage, crashes, eviction and company."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from codemill.engine import block_directory
from codemill.engine.block_file import decode_entry, encode_entry
from codemill.engine.block_store import BlockStore, model_fingerprint
from codemill.errors import UsageError
from codemill.models import CausalLM
from models.reference import FAMILIES, make_ours, make_reference

MEBIBYTE = 1 << 20
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.int64, torch.bool]


def open_store(directory: Path, fingerprint: str = "f00d", max_bytes: int = 64 * MEBIBYTE, **options) -> BlockStore:
    return BlockStore(directory, fingerprint, max_bytes, **options)


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry_of(number: int, size: int = 1000) -> dict[str, torch.Tensor]:
    """What belongs under `key_of(number)`: random bytes, `size` in all, as bf16 (NaNs included)."""
    content = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
    half = size // 4 * 2
    return {
        "key": torch.from_numpy(content[:half]).view(torch.bfloat16),
        "value": torch.from_numpy(content[half:]).view(torch.bfloat16).reshape(1, -1),
    }


def assert_same(found: dict[str, torch.Tensor] | None, expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit, so NaNs too."""
    assert found is not None
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(as_bytes(found[name]), as_bytes(tensor))


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def fill(store: BlockStore, numbers, size: int = 1000) -> None:
    for number in numbers:
        store.put(key_of(number), entry_of(number, size))
    store.flush()


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.block"))


def bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def stored(directory: Path, numbers, fingerprint: str = "f00d") -> list[int]:
    """Which entries a store that is opened now would give."""
    store = open_store(directory, fingerprint)
    found = [number for number in numbers if store.contains(key_of(number))]
    store.close()
    return found


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_bit_survives_in_another_store(self, tmp_path, dtype):
        size = 1 if dtype is torch.bool else 256
        raw = torch.randint(0, size if size > 1 else 2, (8 * 6 * 5,), dtype=torch.uint8)  # every pattern, NaNs too
        tensor = raw.view(dtype)
        shapes = {"flat": tensor, "deep": tensor.reshape(1, 2, 3, -1), "scalar": tensor[0], "empty": tensor[:0]}
        strided = {"transposed": tensor.reshape(2, -1).T, "view": tensor[::2]}
        expected = {name: each.clone() for name, each in shapes.items()} | strided
        first = open_store(tmp_path)
        first.put(b"name", expected)
        first.close()
        second = open_store(tmp_path)
        assert second.contains(b"name")
        assert_same(second.get(b"name"), expected)

    def test_nan_payloads_survive(self, tmp_path):
        patterns = torch.tensor([0x7FC00001, 0x7F800001, -0x400001, 0x7FFFFFFF, -1], dtype=torch.int32)
        halves = torch.tensor([0x7FC1, 0x7F81, -1, -0x7F, 0x7E01, 0x7C01], dtype=torch.int16)
        entry = {"f32": patterns.view(torch.float32), "bf16": halves.view(torch.bfloat16)}
        entry["f16"] = halves.clone().view(torch.float16)
        store = open_store(tmp_path)
        store.put(b"nan", entry)
        store.flush()
        found = store.get(b"nan")
        assert torch.equal(found["f32"].view(torch.int32), patterns)
        assert torch.equal(found["bf16"].view(torch.int16), halves)
        assert torch.equal(found["f16"].view(torch.int16), halves)

    def test_any_reader_of_safetensors_reads_the_file(self, tmp_path):
        fill(open_store(tmp_path), [7])
        (path,) = files(tmp_path)
        assert_same(load_file(path), entry_of(7))
        with safetensors.safe_open(path, "pt") as opened:
            assert set(opened.metadata()) == {"checksum"}

    def test_inference_tensors_and_slices_of_one_copy(self, tmp_path):
        with torch.inference_mode():
            whole = torch.randn(4, 8).clone()
            entry = {str(row): whole[row] for row in range(4)}
        store = open_store(tmp_path)
        store.put(b"rows", entry)
        store.flush()
        assert_same(store.get(b"rows"), entry)

    def test_misses(self, tmp_path):
        store = open_store(tmp_path)
        assert not store.contains(b"unknown")
        assert store.get(b"unknown") is None
        assert store.counters.misses == 1

    def test_another_fingerprint_sees_nothing(self, tmp_path):
        fill(open_store(tmp_path, "aaaa"), [1])
        other = open_store(tmp_path, "bbbb")
        assert not other.contains(key_of(1))
        assert other.get(key_of(1)) is None
        assert stored(tmp_path, [1], "aaaa") == [1]

    def test_what_is_stored_is_not_written_again(self, tmp_path):
        store = open_store(tmp_path)
        fill(store, [1])
        before = files(tmp_path)[0].stat()
        store.put(key_of(1), entry_of(2))
        store.flush()
        after = files(tmp_path)[0].stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert (store.counters.writes, store.counters.dropped) == (1, 0)
        assert_same(store.get(key_of(1)), entry_of(1))

    def test_counters(self, tmp_path):
        store = open_store(tmp_path)
        fill(store, range(5))
        for number in range(7):
            store.get(key_of(number))
        counters = store.counters
        assert (counters.hits, counters.misses, counters.writes, counters.dropped) == (5, 2, 5, 0)
        assert counters.bytes_on_disk == bytes_of(tmp_path)


class TestDamage:
    def test_no_changed_byte_is_believed(self):
        """Every byte of the file, every value: what is not refused has the same meaning (blanks in the header)."""
        entry = {"k": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "v": torch.tensor([0.5])}
        data = encode_entry(b"key", entry)
        num_refused = 0
        for position in range(len(data)):
            for value in set(range(256)) - {data[position]}:
                changed = data[:position] + bytes([value]) + data[position + 1 :]
                try:
                    found = decode_entry(b"key", changed)
                except ValueError:
                    num_refused += 1
                else:
                    assert (data[position : position + 1] + bytes([value])).isspace()
                    assert_same(found, entry)
        assert num_refused > 0.99 * 255 * len(data)

    def test_no_part_of_a_file_is_believed(self):
        data = encode_entry(b"key", entry_of(0, 64))
        for length in range(len(data)):
            with pytest.raises(ValueError, match=r"truncated|checksum"):
                decode_entry(b"key", data[:length])
        with pytest.raises(ValueError, match="truncated"):
            decode_entry(b"key", data + b"\0")

    @pytest.mark.parametrize("where", ["length", "header", "metadata", "first byte", "last byte", "whole"])
    def test_a_damaged_file_is_named_deleted_and_a_miss(self, tmp_path, caplog, where):
        store = open_store(tmp_path)
        fill(store, [1, 2])
        path = next(path for path in files(tmp_path) if path.stem == key_of(1).hex())
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        positions = {"length": 0, "header": data.index(b"dtype"), "metadata": data.index(b"checksum") + 12}
        positions |= {"first byte": start, "last byte": len(data) - 1}
        if where == "whole":
            data = bytearray(random.Random(0).randbytes(len(data)))
        else:
            data[positions[where]] ^= 1
        path.write_bytes(data)
        with caplog.at_level(logging.WARNING, "codemill.engine"):
            assert store.get(key_of(1)) is None
        (record,) = caplog.records
        assert str(path) in record.getMessage()
        assert "\n" not in record.getMessage()
        assert not path.exists()
        assert not store.contains(key_of(1))
        assert_same(store.get(key_of(2)), entry_of(2))
        fill(store, [1])  # it can be computed and kept again
        assert_same(store.get(key_of(1)), entry_of(1))
        assert store.counters.bytes_on_disk == bytes_of(tmp_path)

    def test_truncated_files_of_a_store(self, tmp_path, caplog):
        store = open_store(tmp_path)
        fill(store, range(40))
        for number, path in enumerate(files(tmp_path)):
            os.truncate(path, path.stat().st_size * number // 40)
        assert [store.get(key_of(number)) for number in range(40)] == [None] * 40
        assert len(caplog.records) == 40
        assert files(tmp_path) == []

    def test_a_file_of_another_key_is_foreign(self, tmp_path, caplog):
        store = open_store(tmp_path)
        fill(store, [1, 2])
        first, second = files(tmp_path)
        shutil.copy(first, second)
        assert store.get(key_of(2)) is None
        assert str(second) in caplog.text
        assert_same(store.get(key_of(1)), entry_of(1))

    def test_a_file_of_another_program_is_foreign(self, tmp_path, caplog):
        store = open_store(tmp_path)
        fill(store, [1])
        (path,) = files(tmp_path)
        save_file(entry_of(1), path)
        assert store.get(key_of(1)) is None
        assert str(path) in caplog.text

    def test_a_file_of_a_dtype_without_a_tensor_type_is_foreign(self):
        header = json.dumps({"k": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
        with pytest.raises(ValueError, match="safetensors"):
            decode_entry(b"key", len(header).to_bytes(8, "little") + header + bytes(8))

    def test_what_cannot_be_read_is_a_miss(self, tmp_path, caplog):
        store = open_store(tmp_path)
        fill(store, [1])
        (path,) = files(tmp_path)
        path.unlink()
        path.mkdir()
        assert store.get(key_of(1)) is None
        assert str(path) in caplog.text


class TestEviction:
    def room_for(self, count: int, size: int = 1000) -> int:
        return count * len(encode_entry(key_of(0), entry_of(0, size))) + 8

    def test_least_recently_used_goes_first(self, tmp_path):
        store = open_store(tmp_path, max_bytes=self.room_for(5))
        fill(store, range(5))
        store.get(key_of(0))
        store.get(key_of(2))
        fill(store, [5, 6])
        assert stored(tmp_path, range(7)) == [0, 2, 4, 5, 6]
        fill(store, [7, 8, 9])
        assert stored(tmp_path, range(10)) == [5, 6, 7, 8, 9]
        assert not store.contains(key_of(1))

    def test_order_agrees_with_a_list(self, tmp_path):
        """Random puts and gets against the obvious: a list, oldest first."""
        capacity, rng = 6, random.Random(0)
        store, expected = open_store(tmp_path, max_bytes=self.room_for(capacity)), []
        for _ in range(300):
            number = rng.randrange(12)
            if rng.random() < 0.5:
                fill(store, [number])
                if number not in expected:
                    expected = [*expected, number][-capacity:]
            else:
                assert (store.get(key_of(number)) is not None) == (number in expected)
                if number in expected:
                    expected.remove(number)
                    expected.append(number)
            assert {n for n in range(12) if store.contains(key_of(n))} == set(expected)

    def test_the_bound_holds_all_the_time(self, tmp_path, monkeypatch):
        """Also while a temporary file is there beside the others."""
        max_bytes, rng, replace, sizes = 20_000, random.Random(1), os.replace, []

        def watched(source: Path, target: Path) -> None:
            sizes.append(bytes_of(tmp_path))
            replace(source, target)
            sizes.append(bytes_of(tmp_path))

        monkeypatch.setattr(os, "replace", watched)
        store = open_store(tmp_path, max_bytes=max_bytes)
        for number in range(200):
            fill(store, [number], rng.randrange(4, 16_000) // 4 * 4)
        assert len(sizes) == 400
        assert 0.8 * max_bytes < max(sizes) <= max_bytes
        assert store.counters.bytes_on_disk == bytes_of(tmp_path)

    def test_what_is_too_large_is_not_kept_and_costs_nothing(self, tmp_path):
        store = open_store(tmp_path, max_bytes=self.room_for(3))
        fill(store, range(3))
        fill(store, [99], size=4000)
        assert store.get(key_of(99)) is None
        assert stored(tmp_path, range(3)) == [0, 1, 2]
        assert store.counters.dropped == 1

    def test_a_smaller_bound_holds_from_the_start(self, tmp_path):
        fill(open_store(tmp_path), range(10))
        store = open_store(tmp_path, max_bytes=self.room_for(4))
        assert [n for n in range(10) if store.contains(key_of(n))] == [6, 7, 8, 9]
        assert bytes_of(tmp_path) == self.room_for(4) == store.counters.bytes_on_disk

    def test_entries_of_other_fingerprints_make_room(self, tmp_path):
        fill(open_store(tmp_path, "0123"), range(4))
        store = open_store(tmp_path, "4567", max_bytes=self.room_for(5))
        assert store.counters.bytes_on_disk == self.room_for(4)
        fill(store, range(10, 14))
        assert stored(tmp_path, range(10, 14), "4567") == [10, 11, 12, 13]
        assert stored(tmp_path, range(4), "0123") == [3]
        assert bytes_of(tmp_path) <= self.room_for(5)

    def test_files_of_others_are_left_alone(self, tmp_path):
        mine = [tmp_path / "model.safetensors", tmp_path / "weights" / "00.block", tmp_path / "weights" / "a.block.tmp"]
        for path in mine:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"mine" * 100)
        fill(open_store(tmp_path, max_bytes=self.room_for(2)), range(5))
        assert all(path.read_bytes() == b"mine" * 100 for path in mine)

    def test_the_beginning_of_a_prefix_outlives_its_end(self, tmp_path):
        store = open_store(tmp_path, max_bytes=self.room_for(6))
        fill(store, range(6))
        store.touch([key_of(n) for n in range(4)])
        fill(store, range(10, 14))
        assert stored(tmp_path, range(6)) == [0, 1]
        store.touch([key_of(99)])  # what is not there cannot be touched, which is no error
        assert store.get(key_of(99)) is None


class TestWriter:
    def test_put_does_not_wait_for_the_disk_and_drops_what_is_too_much(self, tmp_path, monkeypatch):
        gate = threading.Event()
        original = block_directory._write_whole
        monkeypatch.setattr(block_directory, "_write_whole", lambda path, data: gate.wait(20) and original(path, data))
        store = open_store(tmp_path, max_queued_bytes=3000)
        entries = [entry_of(number) for number in range(10)]
        start = time.perf_counter()
        for number, entry in enumerate(entries):
            store.put(key_of(number), entry)
        assert time.perf_counter() - start < 1
        assert store.counters.dropped == 7
        assert files(tmp_path) == []
        gate.set()
        store.flush()
        assert [n for n in range(10) if store.contains(key_of(n))] == [0, 1, 2]
        assert (store.counters.writes, store.counters.dropped) == (3, 7)
        fill(store, [5])  # room in the queue again
        assert_same(store.get(key_of(5)), entry_of(5))

    def test_close_writes_what_is_left_and_then_nothing(self, tmp_path):
        store = open_store(tmp_path)
        for number in range(50):
            store.put(key_of(number), entry_of(number))
        store.close()
        store.close()
        store.flush()
        store.put(key_of(99), entry_of(99))
        assert store.counters.dropped == 1
        assert_same(store.get(key_of(3)), entry_of(3))
        assert stored(tmp_path, range(100)) == list(range(50))

    def test_a_full_disk_turns_writing_off_with_one_warning(self, tmp_path, monkeypatch, caplog):
        store = open_store(tmp_path)
        fill(store, [1])

        def full(self: Path, data: bytes) -> None:
            with open(self, "wb") as file:
                file.write(data[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        fill(store, range(2, 10))
        monkeypatch.undo()
        fill(store, range(10, 20))
        (record,) = caplog.records
        assert str(tmp_path) in record.getMessage()
        assert "No space left on device" in record.getMessage()
        assert_same(store.get(key_of(1)), entry_of(1))
        assert (store.counters.writes, store.counters.dropped) == (1, 18)
        assert [path.name for path in tmp_path.rglob("*.tmp")] == []
        store.close()

    def test_a_directory_that_turns_into_a_file_is_survived(self, tmp_path, caplog):
        store = open_store(tmp_path / "cache")
        fill(store, [1])
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("in the way")
        fill(store, [2])
        assert store.get(key_of(1)) is None
        assert store.get(key_of(2)) is None
        assert "no more is kept there" in caplog.records[0].getMessage()
        store.close()

    def test_a_directory_that_cannot_be_made_is_a_usage_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match=str(tmp_path / "file" / "cache")):
            open_store(tmp_path / "file" / "cache")
        with pytest.raises(UsageError, match="choose another"):
            open_store(tmp_path / "file")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_directory_that_cannot_be_written_is_a_usage_error(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(UsageError, match=str(tmp_path)):
            open_store(tmp_path)


def large_entry(number: int) -> dict[str, torch.Tensor]:
    """One that takes longer to write than to make."""
    return {"state": torch.from_numpy(np.full(MEBIBYTE // 2, float(number)))}


def write_until_killed(directory: Path, started: Event) -> None:
    store = open_store(directory)
    started.set()
    for number in range(100_000):
        store.put(key_of(number), large_entry(number))
        store.flush()


class TestCompany:
    def test_a_killed_writer_leaves_only_whole_entries(self, tmp_path):
        rng, fork, num_found = random.Random(0), multiprocessing.get_context("fork"), 0
        for _ in range(10):
            started = fork.Event()
            child = fork.Process(target=write_until_killed, args=(tmp_path, started))
            child.start()
            assert started.wait(20)
            time.sleep(rng.uniform(0.02, 0.1))
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            store = open_store(tmp_path)
            assert list(tmp_path.rglob("*.tmp")) == []
            assert store.counters.bytes_on_disk == bytes_of(tmp_path) <= 64 * MEBIBYTE
            for path in files(tmp_path):
                number = int(path.stem, 16)
                assert_same(store.get(key_of(number)), large_entry(number))
                path.unlink()
                num_found += 1
            store.close()
        assert num_found > 10

    def test_what_a_dead_writer_left_is_removed(self, tmp_path):
        fill(open_store(tmp_path), [1])
        (path,) = files(tmp_path)
        left = path.with_suffix(".block.tmp")
        left.write_bytes(path.read_bytes()[:100])
        open_store(tmp_path, "another")
        assert not left.exists()
        assert path.exists()

    def test_a_file_that_is_being_written_is_not_removed(self, tmp_path, monkeypatch):
        """A second store that opens in the middle of a write waits for it."""
        writing, gate, replace = threading.Event(), threading.Event(), os.replace

        def slow(source: str | Path, target: str | Path) -> None:
            writing.set()
            gate.wait(20)
            replace(source, target)

        monkeypatch.setattr(os, "replace", slow)
        first = open_store(tmp_path)
        first.put(key_of(1), entry_of(1))
        assert writing.wait(20)
        opened: list[BlockStore] = []
        opener = threading.Thread(target=lambda: opened.append(open_store(tmp_path)))
        opener.start()
        opener.join(0.2)
        assert opener.is_alive()
        assert len(list(tmp_path.rglob("*.tmp"))) == 1
        gate.set()
        opener.join()
        assert_same(opened[0].get(key_of(1)), entry_of(1))

    def test_two_stores_on_one_directory(self, tmp_path):
        first, second = open_store(tmp_path), open_store(tmp_path)
        fill(first, range(10))
        fill(second, range(5, 15))
        assert_same(second.get(key_of(0)), entry_of(0))
        assert_same(first.get(key_of(14)), entry_of(14))
        assert len(files(tmp_path)) == 15
        for path in files(tmp_path):
            path.unlink()
        assert first.contains(key_of(0))
        assert first.get(key_of(0)) is None
        assert not first.contains(key_of(0))
        fill(first, [0])
        assert_same(second.get(key_of(0)), entry_of(0))

    def test_two_stores_keep_the_bound_and_the_order_together(self, tmp_path):
        size = len(encode_entry(key_of(0), entry_of(0)))
        stores = [open_store(tmp_path, max_bytes=10 * size + 8) for _ in range(2)]
        for number in range(40):
            fill(stores[number % 2], [number])
            stores[1 - number % 2].get(key_of(0))
            assert bytes_of(tmp_path) <= 10 * size + 8
        assert stored(tmp_path, range(40)) == [0, *range(31, 40)]

    def test_two_processes_writing_at_once(self, tmp_path):
        size = len(encode_entry(key_of(0), entry_of(0, 4000)))
        max_bytes, fork = 50 * size + 8, multiprocessing.get_context("fork")

        def work(first: int) -> None:
            store = open_store(tmp_path, max_bytes=max_bytes)
            fill(store, range(first, first + 100), 4000)
            store.close()

        children = [fork.Process(target=work, args=(first,)) for first in (0, 50)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0]
        assert 40 * size < bytes_of(tmp_path) <= max_bytes
        store = open_store(tmp_path, max_bytes=max_bytes)
        for path in files(tmp_path):
            number = int(path.stem, 16)
            assert_same(store.get(key_of(number)), entry_of(number, 4000))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> CausalLM:
    return make_ours(make_reference(request.param))


class TestFingerprint:
    def test_the_same_weights_agree(self, model):
        copy = make_ours(make_reference(model.config.model_type))
        assert copy is not model
        assert model_fingerprint(model, "a") == model_fingerprint(copy, "a")

    def test_every_parameter_counts(self, model):
        before = model_fingerprint(model)
        for name, parameter in model.named_parameters():
            original = parameter.detach().clone()
            with torch.no_grad():
                parameter.mul_(1.01)
                assert model_fingerprint(model) != before, name
                parameter.copy_(original)
        assert model_fingerprint(model) == before

    def test_parts_and_dtypes_count(self, model):
        assert len({model_fingerprint(model, *parts) for parts in ([], ["a"], ["a", "b"], ["ab"], ["", "ab"])}) == 5
        copy = make_ours(make_reference(model.config.model_type))
        assert model_fingerprint(copy.bfloat16()) != model_fingerprint(model)

    def test_shapes_names_and_buffers_count(self):
        def digest(shape: tuple[int, ...], name: str = "weight", is_buffer: bool = False) -> str:
            module, tensor = torch.nn.Module(), torch.arange(600.0).reshape(shape)
            if is_buffer:
                module.register_buffer(name, tensor)
            else:
                module.register_parameter(name, torch.nn.Parameter(tensor))
            return model_fingerprint(module)

        assert len({digest((600,)), digest((20, 30)), digest((30, 20)), digest((600,), "bias")}) == 4
        assert digest((600,), is_buffer=True) == digest((600,))
        assert digest((600,), is_buffer=True) != digest((600,), "bias", is_buffer=True)

    @pytest.mark.parametrize("position", [0, 1, 7, -1])
    def test_the_ends_of_a_large_parameter_count(self, position):
        module = torch.nn.Linear(1000, 300, bias=False)
        before = model_fingerprint(module)
        with torch.no_grad():
            module.weight.view(-1)[position] += 1
        assert model_fingerprint(module) != before

    @pytest.mark.parametrize("tensor", [torch.tensor(1.5), torch.zeros(0, 3), torch.ones(700, 5).bfloat16().T], ids=str)
    def test_odd_shapes(self, tensor):
        module = torch.nn.Module()
        module.register_buffer("odd", tensor)
        before = model_fingerprint(module)
        module.odd = tensor * 2
        assert (model_fingerprint(module) != before) == (tensor.numel() > 0)

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory as Linux tells it")
    def test_a_mapped_file_is_not_read_whole(self, tmp_path):
        """A sparse file of 8 GiB, of which only the sampled pages come into memory."""
        size = 1 << 32
        (tmp_path / "weights").touch()
        os.truncate(tmp_path / "weights", 2 * size)
        mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=size, dtype=torch.bfloat16)
        module = torch.nn.Module()
        module.register_buffer("weights", mapped.view(1 << 16, 1 << 16))
        before = resident_bytes()
        model_fingerprint(module)
        assert resident_bytes() - before < 64 * MEBIBYTE


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
