"""llama.cpp, through the low-level calls of llama-cpp-python."""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.bench.engines import EngineOptions, Timing
from codemill.bench.engines.gguf_shapes import write_gguf
from codemill.bench.engines.llama_amx import is_amx_denied, withhold_amx_if_it_crashes
from codemill.errors import CodemillError

_KINDS = {"int4": "Q4_0", "int8": "Q8_0", "bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# A shape that is large enough for a matrix product by AMX.
_TRIAL = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_MICRO_BATCH = 512  # llama.cpp's default, the tokens of one pass
_F16, _BF16 = 1, 30  # of `enum ggml_type`


@dataclass(frozen=True)
class Setting:
    """How a context is made."""

    flash_attention: bool
    cache_type: int

    def __str__(self) -> str:
        attention = "flash attention" if self.flash_attention else "no flash attention"
        return f"{attention}, {'f16' if self.cache_type == _F16 else 'bf16'} KV"


class LlamaCpp:
    """One model; a new context for each run, so that it has just the room that the run needs."""

    def __init__(self, path: Path, num_threads: int, title: str) -> None:
        """`title` begins the settings' names. Raises CodemillError if llama.cpp refuses the file."""
        import llama_cpp

        self._library: Any = llama_cpp
        self._num_threads = num_threads
        self.weights: dict[str, Any] = {}
        ways = (Setting(True, _F16), Setting(False, _F16), Setting(True, _BF16))
        self._ways = {f"{title}, {way}": way for way in ways}
        self.settings = tuple(self._ways)
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # llama.cpp keeps a pointer to it
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise CodemillError(f"cannot load {path}")

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        context = self._context(self._ways[setting], len(prompts), len(prompts[0]) + num_new)
        try:
            start = time.perf_counter()
            for number, prompt in enumerate(prompts):
                self._prefill(context, prompt, number)
            first = time.perf_counter()
            for step in range(num_new - 1):
                # Which tokens they are makes no difference to the speed, so none are sampled: a courtesy.
                rows = [(prompt[step % len(prompt)], len(prompt) + step, n) for n, prompt in enumerate(prompts)]
                self._decode(context, rows, len(rows))
            return Timing(first - start, time.perf_counter() - first)
        finally:
            self._library.llama_free(context)

    def _context(self, way: Setting, num_sequences: int, num_tokens: int) -> Any:
        library = self._library
        params = library.llama_context_default_params()
        params.n_ctx = num_sequences * (-(-num_tokens // 256) * 256)
        params.n_batch = params.n_ubatch = _MICRO_BATCH
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = self._num_threads
        params.flash_attn_type = (
            library.LLAMA_FLASH_ATTN_TYPE_ENABLED if way.flash_attention else library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = params.type_v = way.cache_type
        context = library.llama_init_from_model(self._model, params)
        if not context:
            raise CodemillError("no memory for a context")
        return context

    def _prefill(self, context: Any, prompt: Sequence[int], sequence: int) -> None:
        """A prompt in pieces of a micro batch; logits of its last token only."""
        for start in range(0, len(prompt), _MICRO_BATCH):
            piece = prompt[start : start + _MICRO_BATCH]
            rows = [(token, start + offset, sequence) for offset, token in enumerate(piece)]
            self._decode(context, rows, 1 if start + len(piece) == len(prompt) else 0)

    def _decode(self, context: Any, rows: Sequence[tuple[int, int, int]], num_logits: int) -> None:
        """One pass over rows of (token, position, sequence); logits of the last `num_logits`."""
        batch = self._library.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, int(i >= len(rows) - num_logits)
            if self._library.llama_decode(context, batch):
                raise CodemillError("llama_decode failed")
            self._library.llama_synchronize(context)
        finally:
            self._library.llama_batch_free(batch)


def prepare(options: EngineOptions) -> None:
    """Write the model, and a small one to try."""
    kind = _kind(options)
    for path, config in ((options.path(".gguf"), options.config), (_trial_path(options), _TRIAL)):
        if not path.exists():
            write_gguf(path, config, kind)


def set_up(options: EngineOptions) -> None:
    """Do without AMX where it crashes."""
    withhold_amx_if_it_crashes(lambda: _try(_trial_path(options), options.num_threads))


def create(options: EngineOptions) -> LlamaCpp:
    kind = _kind(options)
    title = f"{kind}, AMX off (it crashes)" if is_amx_denied() else kind
    return LlamaCpp(options.path(".gguf"), options.num_threads, title)


def _kind(options: EngineOptions) -> str:
    return _KINDS[options.quantization or options.dtype]


def _trial_path(options: EngineOptions) -> Path:
    return Path(options.folder) / f"trial-{_kind(options)}.gguf"


def _try(path: Path, num_threads: int) -> None:
    """A prompt of a small model."""
    engine = LlamaCpp(path, num_threads, "trial")
    engine.run([list(range(64))], 2, engine.settings[0])
