"""A conversation -> token ids and the loss weight of each: the assistant's tokens are learned, all others are given."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from codemill.chat.reasoning import CLOSE, OPEN
from codemill.chat.tokenizer import END_OF_TEXT, Tokenizer
from codemill.data.chat_turns import TURN_END, TURN_START, Part, mark_answers, to_parts
from codemill.data.conversation_formats import Continuation, Conversation, Example
from codemill.data.packing import Document
from codemill.errors import CodemillError, UsageError

REASONING_TAGS = frozenset({OPEN, CLOSE})
CALL_TAGS = frozenset({"<tool_call>", "</tool_call>"})
THINKING = {"auto": {}, "on": {"enable_thinking": True}, "off": {"enable_thinking": False}}


class ExampleEncoder:
    """Encodes examples with a tokenizer and its chat template.

    thinking: whether the template is told to think ("on", "off") or not told anything ("auto"). control_tokens: what
    control tokens in texts outside of chats become, "text" or "tokens". thoughts_left_out counts the messages so far
    whose thoughts the template did not write.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: str = "auto", control_tokens: str = "text") -> None:
        self._tokenizer = tokenizer
        self._variables: dict[str, Any] = THINKING[thinking]
        self._as_tokens = control_tokens == "tokens"
        self.thoughts_left_out = 0
        self._openings: dict[bool, list[list[Part]]] = {}

    def encode(self, example: Example) -> Document:
        """The ids and loss weights of an example.

        Raises UsageError for a conversation that the template refuses and CodemillError for a template whose turns
        cannot be told apart: a mask is right or there is none.
        """
        if isinstance(example, Continuation):
            return self._continuation(example)
        parts = self._parts(example)
        pieces = [self._part_ids(part) for part in parts]
        weights = [weight for weight, ids in zip(_weights(parts, example), pieces, strict=True) for _ in ids]
        ids = np.fromiter(chain.from_iterable(pieces), np.int32)
        return Document(ids, np.array(weights, dtype=np.float32))

    def encode_prompt(self, example: Example) -> Document:
        """What the model is given to answer: the prompt with the opening of the answer, no token of it learned."""
        if isinstance(example, Continuation):
            return Document.of(self._text_ids(example.prompt), 0.0)
        return Document.of(self._tokenizer.encode_chat(example.messages, example.tools, True, **self._variables), 0.0)

    def _parts(self, example: Conversation) -> list[Part]:
        answers = _answers(example)
        pieces = self._tokenizer.render_pieces(example.messages, example.tools, False, **self._variables)
        spelled = [self._spelled(message) for message in answers]
        parts = mark_answers(to_parts(pieces), self._opening(bool(example.tools)), spelled)
        self.thoughts_left_out += _check_answers(parts, answers)
        return parts

    def _opening(self, has_tools: bool) -> list[list[Part]]:
        """How an answer begins: as the generation prompt does, or (in earlier turns, before calls) with the role."""
        if has_tools not in self._openings:
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}] if has_tools else []
            question = [{"role": "user", "content": "?"}]
            parts = to_parts(self._tokenizer.render_pieces(question, tools, True, **self._variables))
            starts = [i for i, part in enumerate(parts) if part == Part(TURN_START, True)]
            if not starts or TURN_END not in self._tokenizer.control_tokens:
                raise CodemillError(
                    "the chat template is not ChatML, so the assistant's turns cannot be told apart; use a tokenizer "
                    "whose template is, or give {prompt, completion} as texts"
                )
            start = parts[starts[-1]]
            role = [[start, Part("assistant\n")], [start, Part("assistant")]]
            self._openings[has_tools] = [parts[starts[-1] :], *role]
        return self._openings[has_tools]

    def _spelled(self, message: dict[str, Any]) -> frozenset[str]:
        """What an assistant's content may spell out already, and means: its thoughts, and calls that are not apart."""
        return self._reasoning_tags if message.get("tool_calls") else self._reasoning_tags | self._call_tags

    @cached_property
    def _reasoning_tags(self) -> frozenset[str]:
        return REASONING_TAGS & self._tokenizer.control_tokens.keys()

    @cached_property
    def _call_tags(self) -> frozenset[str]:
        return CALL_TAGS & self._tokenizer.control_tokens.keys()

    def _part_ids(self, part: Part) -> list[int]:
        return [self._tokenizer.control_tokens[part.text]] if part.is_control else self._tokenizer.encode(part.text)

    def _continuation(self, example: Continuation) -> Document:
        prompt = self._text_ids(example.prompt)
        completion = [*self._text_ids(example.completion), self.end_of_text] if example.completion else []
        if example.completion.endswith(END_OF_TEXT) and self._as_tokens:
            completion.pop()
        weights = np.repeat(np.array([0.0, 1.0], np.float32), [len(prompt), len(completion)])
        return Document(np.array(prompt + completion, dtype=np.int32), weights)

    def _text_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, "all" if self._as_tokens else frozenset())

    @cached_property
    def end_of_text(self) -> int:
        """What ends a text: `<|endoftext|>`, else what the tokenizer is configured with."""
        tokens = self._tokenizer.control_tokens
        end = tokens.get(END_OF_TEXT, next(iter(self._tokenizer.eos_token_ids), None))
        if end is None:
            raise UsageError(f"the tokenizer has no {END_OF_TEXT} to end a text with; use another")
        return end


def _answers(example: Conversation) -> list[dict[str, Any]]:
    return [message for message in example.messages if message["role"] == "assistant"]


def _weights(parts: Sequence[Part], example: Conversation) -> list[float]:
    """The loss weight of each part."""
    roles = [message["role"] for message in example.messages]
    weights = [weight for weight, role in zip(example.weights, roles, strict=True) if role == "assistant"]
    return [0.0 if part.answer is None else weights[part.answer] for part in parts]


def _check_answers(parts: Sequence[Part], messages: Sequence[dict[str, Any]]) -> int:
    """How many messages have thoughts that the template left out.

    Raises CodemillError unless the turn of each assistant message holds what it says.
    """
    texts = [""] * len(messages)
    for part in parts:
        if part.answer is not None:
            texts[part.answer] += part.text
    for number, (message, text) in enumerate(zip(messages, texts, strict=True)):
        names = [call.get("function", call)["name"] for call in message.get("tool_calls") or ()]
        if not all(said in text for said in (message["content"].split(CLOSE)[-1].strip(), *names)):
            raise CodemillError(f"the chat template does not write what assistant message {number} says in its turn")
    return sum(_thoughts(message) not in text for message, text in zip(messages, texts, strict=True))


def _thoughts(message: dict[str, Any]) -> str:
    """What an assistant message thinks, apart from its content or at its start."""
    before, closed, _ = message["content"].rpartition(CLOSE)
    return str(message.get("reasoning_content") or (before.split(OPEN)[-1] if closed else "")).strip()
