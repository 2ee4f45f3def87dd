"""Grammar-constrained decoding: at each position the token that the grammar forces, else one that its mask allows.

What is forced and what is allowed depends on the tokens so far and on nothing else, so that decoding with and without
speculation gives the same. The grammars are llguidance's (https://github.com/guidance-ai/llguidance). No torch here.

Shapes: W is ceil(V / 32) words of 32 bits for the V rows of the model's vocabulary, the lowest bit first.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.grammar_vocabulary import GrammarVocabulary, TokenSet
from codemill.engine.json_schema import document
from codemill.engine.structured_output import StructuredOutput
from codemill.engine.tool_grammar import tool_grammar
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_REASON = 300  # characters of llguidance's reason in an error
# Characters of a grammar. llguidance gives up on most that are too large, but takes a minute over some of a megabyte.
MAX_SOURCE = 128 << 10
# Between what is wrong and how: the regex again, and a line that points into it.
REGEX_ERROR = re.compile(r"(?: \(in regex\): )?regex parse error:.*?^error: ", re.DOTALL | re.MULTILINE)
SOURCE_LINES = re.compile(r"^ +(?:\d+ \|.*|\^+)$", re.MULTILINE)


class GrammarCompiler:
    """Compiles what requests ask for, once for each `StructuredOutput.key`; may be shared by threads.

    tokenizer: the model's. vocab_size: rows of the model's vocabulary, V; ids beyond the tokenizer's are never
    allowed. eos_token_ids: the ids that may end an output; the tokenizer's own where there are none. max_grammars:
    so many compiled grammars are kept, those used last.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int] = (), max_grammars: int = 256
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids or tokenizer.eos_token_ids)
        self._max_grammars = max_grammars
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, structured_output: StructuredOutput) -> Grammar:
        """The grammar of what is asked for; the first call reads the vocabulary, which takes a second for Qwen's.

        Raises UsageError with the reason if there is no such grammar, CodemillError if llguidance is not installed.
        """
        key = structured_output.key
        with self._lock:
            found = self._grammars.get(key)
            if found is not None and found.is_usable:
                self._grammars.move_to_end(key)
                return found
            vocabulary = self._vocabulary
        grammar = Grammar(_matcher(structured_output, vocabulary), vocabulary)
        # Now, and not in the middle of an answer beside others; twice, since what uses all up is still answered.
        if not (grammar.is_usable and grammar.is_usable):
            raise UsageError("structured_output asks for a grammar that is too large: use a simpler one")
        with self._lock:
            self._grammars[key] = grammar
            while len(self._grammars) > self._max_grammars:
                self._grammars.popitem(last=False)
        return grammar

    @cached_property
    def _vocabulary(self) -> GrammarVocabulary:
        return GrammarVocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)


class Grammar:
    """A compiled grammar. `warnings` says in words what of a JSON schema it ignores."""

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.warnings: tuple[str, ...] = tuple(matcher.get_grammar_warnings())

    @property
    def is_usable(self) -> bool:
        """False once a sequence has used up what llguidance grants all sequences of a grammar together."""
        probe = self._matcher.deep_copy()
        probe.compute_bitmask()
        return not probe.is_error()

    def start(self, eos_token_ids: Collection[int] | None = None) -> GrammarState:
        """A state at the beginning, for one sequence; `eos_token_ids` are those that may end it, None for all."""
        eos = self._vocabulary.eos if eos_token_ids is None else self._vocabulary.token_set(frozenset(eos_token_ids))
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, eos)


class GrammarState:
    """Where one sequence stands in its grammar. Every method raises CodemillError if llguidance gives up."""

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary, eos: TokenSet, ended: bool = False) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._eos = eos
        self._ended = ended

    def copy(self) -> GrammarState:
        """An independent state at the same place; takes microseconds."""
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, self._eos, self._ended)

    def forced_tokens(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice; empty where there is one.

        After the first is accepted the rest of them is forced, and perhaps more.
        """
        if self.is_finished:
            return []
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def fill_mask(self, row: NDArray[np.int32]) -> None:
        """Write the ids that may come next into `row` int32 [W], a bit each.

        The end-of-text ids are among them exactly where the grammar accepts the text so far as complete.
        """
        if self._ended:
            row[:] = 0
        else:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            self._check()
            row &= self._vocabulary.text.bits
        if self.is_accepting:
            row |= self._eos.bits

    def accept(self, token_id: int) -> None:
        """Take the next token. Raises CodemillError naming the token if the grammar does not allow it."""
        if not self._allows(token_id):
            raise CodemillError(
                f"the grammar does not allow token {token_id} ({self._vocabulary.decode(token_id)!r}) here; "
                "sample from its mask"
            )
        if token_id in self._eos.ids:
            self._ended = True
        else:
            self._matcher.consume_token(token_id)
            self._check()

    def num_valid(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, may come next; none of them is taken."""
        state = self.copy()
        for count, token_id in enumerate(token_ids):
            if not state._allows(token_id):
                return count
            state.accept(token_id)
        return len(token_ids)

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete, though more may be allowed."""
        return not self._ended and self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end-of-text token may follow, or one has been accepted."""
        return self._ended or self._matcher.is_stopped()

    def _allows(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._eos.ids:
            return self.is_accepting
        if token_id not in self._vocabulary.text.ids:
            return False
        forced = self.forced_tokens()
        return token_id == forced[0] if forced else self._matcher.validate_tokens([token_id]) == 1

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise UsageError(f"the grammar cannot go on: {reason}; use a simpler one")


def _matcher(structured_output: StructuredOutput, vocabulary: GrammarVocabulary) -> LLMatcher:
    from llguidance import LLMatcher

    source = _source(structured_output, vocabulary)
    if len(source) > MAX_SOURCE:
        raise UsageError(
            f"structured output: the grammar has {len(source)} characters: use one of at most {MAX_SOURCE}"
        )
    matcher = LLMatcher(vocabulary.tokenizer, source, log_level=0)
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        if structured_output.regex is not None:
            problem = reason.rpartition('": ')[2]  # what comes before is the regex again
            raise UsageError(f"structured output: the regex cannot be used: {problem}")
        raise UsageError(f"structured output: no grammar can be made: {reason}")
    return matcher


def _source(wanted: StructuredOutput, vocabulary: GrammarVocabulary) -> str:
    """The grammar in llguidance's own terms."""
    from llguidance import LLMatcher

    if wanted.tools is not None:
        control = {name: i for name, i in vocabulary.control_tokens.items() if i in vocabulary.token_ids}
        return LLMatcher.grammar_from_lark(tool_grammar(wanted.tools, control, vocabulary.eos.ids))
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.lark is not None:
        return LLMatcher.grammar_from_lark(wanted.lark)
    if wanted.choice is not None:
        texts = dict.fromkeys(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
    return LLMatcher.grammar_from_json_schema(document(wanted.schema))


def _reason(error: str) -> str:
    """What llguidance says, without the state and the source it prints, on one line."""
    reason = REGEX_ERROR.sub(": ", error.partition("<state>")[0])
    reason = " ".join(SOURCE_LINES.sub("", reason).split())
    if reason.startswith(":"):
        reason = f"pattern{reason}"
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON // 3]} ... {reason[-MAX_REASON // 2 :]}"
