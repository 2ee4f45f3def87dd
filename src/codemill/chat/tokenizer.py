"""The tokenizer: byte-level BPE of a checkpoint, with chat rendering that user text cannot break out of."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codemill.chat.messages import normalize_messages, normalize_tools
from codemill.chat.rendering import render_coder
from codemill.chat.template import ChatTemplate, ControlMarks
from codemill.chat.tokenizer_files import TokenizerFiles, build_backend, read_tokenizer_files
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
PIECE = 256 << 10  # characters encoded at a time: each takes a hundred bytes meanwhile
WORD_END = re.compile(r"[^\W\d_](?= )|\n(?=[^\W\d_])")
SHORT, MOST_KNOWN = 128, 1024  # characters of a text whose ids are kept; how many texts


class Tokenizer:
    """Text to token ids and back. Build one with `Tokenizer.load`.

    Control tokens (every added token, such as `<|im_end|>` or `<tool_call>`) that occur in text are encoded as the
    plain characters they are, unless the caller allows them.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        """Raises CodemillError naming the file if it is corrupt or not byte-level BPE."""
        self._files = files
        self._backend = build_backend(files)
        self._plain = _without_added_tokens(self._backend)
        added = self._backend.get_added_tokens_decoder()
        self.control_tokens: Mapping[str, int] = {token.content: i for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._known: dict[str, tuple[int, ...]] = {}
        self._bytes: dict[int, bytes] = {i: token.content.encode() for i, token in added.items()}

    @classmethod
    def load(cls, spec: str | Path | None = None) -> "Tokenizer":
        """The tokenizer of a model spec: a directory (or its tokenizer.json), a hub id, None for the embedded model.

        `random:PRESET` gets the embedded tokenizer, for benchmarks only. Raises CodemillError or UsageError.
        """
        return cls(read_tokenizer_files(spec))

    # Text and ids

    def encode(self, text: str, allowed_special: AbstractSet[str] | Literal["all"] = frozenset()) -> list[int]:
        """Token ids of `text`; of the control tokens in it only the allowed ones become their ids.

        Text is normalised to NFC where the tokenizer says so (Qwen's does). A lone surrogate becomes U+FFFD.
        Raises UsageError for an allowed token the vocabulary does not have.
        """
        text = replace_surrogates(text)
        if allowed_special == "all":
            return _encoded(self._backend, text)
        if not allowed_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for i, piece in enumerate(self._allowed_pattern(allowed_special).split(text)):
            ids += [self.control_tokens[piece]] if i % 2 else self._encode_plain(piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        known = self._known.get(text)
        if known is None:
            ids = _encoded(self._plain, text)
            if len(text) <= SHORT:
                self._remember(text, tuple(ids))
            return ids
        return list(known)

    def _remember(self, text: str, ids: tuple[int, ...]) -> None:
        """What a chat format writes is in every prompt: a call of the library costs more than finding it again."""
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[text] = ids

    def _allowed_pattern(self, allowed: AbstractSet[str]) -> re.Pattern[str]:
        if unknown := sorted(set(allowed) - set(self.control_tokens)):
            raise UsageError(f"allowed_special: {unknown[0]!r} is not a control token of {self._files.path}")
        return alternatives(allowed)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        return b"".join(self.token_bytes(i) for i in ids if i not in skip).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token stands for; empty for an id without a token (the vocabulary's padding rows)."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            found = bytes(map(BYTE_OF.__getitem__, token)) if token else b""
            self._bytes[token_id] = found
        return found

    # Vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model may have more rows than this."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it (`Ġ` for a space), or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id, or None where there is no token."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the configured one first, then the ends of turn and of text."""
        names = (self._configured("eos_token"), END_OF_TURN, END_OF_TEXT)
        ids = (self.control_tokens.get(name) for name in names if name is not None)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @cached_property
    def pad_token_id(self) -> int | None:
        """Id to fill batches with, or None if the vocabulary has none."""
        return self.control_tokens.get(self._configured("pad_token") or END_OF_TEXT)

    @cached_property
    def fim_stop_ids(self) -> tuple[int, ...]:
        """Ids that end a fill-in-the-middle completion, those the vocabulary has."""
        from codemill.chat.prompts import fim_stop_ids

        return fim_stop_ids(self)

    def _configured(self, name: str) -> str | None:
        value = self._files.config.get(name)
        return value.get("content") if isinstance(value, dict) else value

    # Chat

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template, in Jinja; None if it has none, and ours is used."""
        return self._files.templates.get("default")

    @cached_property
    def call_style(self) -> Literal["qwen3_coder", "hermes"]:
        """How the chat format writes tool calls: Qwen3-Coder's XML, or JSON between `<tool_call>` tags as Hermes."""
        templates = self._files.templates
        source = templates.get("tool_use") or templates.get("default")
        return "hermes" if source is not None and "<function=" not in source else "qwen3_coder"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The conversation as text, by the checkpoint's own chat template, or ours (Qwen3-Coder's) where it has none.

        `template_kwargs` are variables of the template (`enable_thinking=False`); ours knows `revision`.
        Raises UsageError naming the message that is malformed, CodemillError if the template fails.
        """
        return self._render(messages, tools, add_generation_prompt, template_kwargs, marks=None)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> list[int]:
        """Ids of `render(...)`, where only the control tokens that the chat format itself writes become control ids.

        The same strings in messages, tools or template variables are encoded as text. Raises as `render` does.
        """
        ids: list[int] = []
        for text, token in self.render_pieces(messages, tools, add_generation_prompt, **template_kwargs):
            ids += self._encode_plain(replace_surrogates(text))
            ids += [self.control_tokens[token]] if token else []
        return ids

    def render_pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> list[tuple[str, str | None]]:
        """`render(...)` in pairs: a text, and the control token that the chat format itself writes after it.

        The last pair has None. The same strings in messages stay part of the texts. Raises as `render` does.
        """
        marked = self._render(messages, tools, add_generation_prompt, template_kwargs, marks=self._marks)
        return list(self._marks.split(marked))

    @cached_property
    def _marks(self) -> ControlMarks:
        return ControlMarks(tuple(self.control_tokens))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
        marks: ControlMarks | None,
    ) -> str:
        messages, tools = normalize_messages(messages), normalize_tools(tools)
        render: Callable[..., str] = render_coder
        if self._files.templates:
            render = self._template("tool_use" if tools else "default").render
        variables = self._token_variables(marks) | dict(template_kwargs)
        return render(messages, tools, add_generation_prompt=add_generation_prompt, marks=marks, **variables)

    def _token_variables(self, marks: ControlMarks | None) -> dict[str, str]:
        """The configured tokens that a template may write as variables."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: token for name in names if (token := self._configured(name)) is not None}
        return {name: marks.mark(token) if marks else token for name, token in tokens.items()}

    def _template(self, name: str) -> ChatTemplate:
        templates = self._compiled_templates
        found = templates.get(name) or templates.get("default")
        if found is None:
            raise CodemillError(
                f"{self._files.path.parent}: no chat template called 'default', only {sorted(templates)}"
            )
        return found

    @cached_property
    def _compiled_templates(self) -> dict[str, ChatTemplate]:
        return {name: ChatTemplate(source) for name, source in self._files.templates.items()}

    # Files

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what a text or a conversation becomes: vocabulary, added tokens, templates."""
        files = self._files
        rest = json.dumps([files.config, files.templates, files.added_tokens], sort_keys=True)
        return hashlib.sha256(files.blob + rest.encode()).hexdigest()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[TokenizerFiles]]:
        """A copy for another process is built from the same files."""
        return Tokenizer, (self._files,)

    def to_json(self) -> str:
        """The text of its tokenizer.json, with all added tokens."""
        return str(self._backend.to_str())

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) where `transformers` reads them."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(self._saved_config(), indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")

    def _saved_config(self) -> dict[str, Any]:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._files.config}
        for key, token_id in (("eos_token", next(iter(self.eos_token_ids), None)), ("pad_token", self.pad_token_id)):
            if token_id is not None:
                config.setdefault(key, self.id_to_token(token_id))
        templates = self._files.templates
        if templates:
            named = [{"name": name, "template": source} for name, source in templates.items()]
            config["chat_template"] = templates["default"] if list(templates) == ["default"] else named
        return config


def _without_added_tokens(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """A second view of the same model (shared, not loaded again) that sees control tokens as text."""
    import tokenizers

    plain = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def alternatives(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern with one group that matches any of these strings, the longest first."""
    return re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")


def in_pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of about this many characters, cut between a word and a space or a new line and a word.

    There every tokenizer of this family begins a token. A text without such a place has longer pieces.
    """
    start = 0
    while len(text) - start > size:
        found = WORD_END.search(text, start + size - 1)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _encoded(backend: "tokenizers.Tokenizer", text: str) -> list[int]:
    ids: list[int] = []
    for piece in in_pieces(text, PIECE):
        ids += backend.encode_batch_fast([piece], add_special_tokens=False)[0].ids
    return ids


def replace_surrogates(text: str) -> str:
    """The same text with every lone surrogate replaced by U+FFFD and every surrogate pair joined."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes: printable Latin-1 is itself, the rest is moved to U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(moved)}


BYTE_OF = _byte_alphabet()
