"""The items that an answer is made of, each with the events that tell how it comes about."""

import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from codemill.chat.tool_types import ToolCall
from codemill.server.events import TokenLogprob
from codemill.server.protocols.chat import logprobs_object
from codemill.server.protocols.responses_input import encode_reasoning
from codemill.server.protocols.responses_tools import INPUT, Origin
from codemill.server.protocols.string_reader import StringReader

Json = dict[str, Any]


class Item(ABC):
    """An item; `index` is its place in the output. Events have no sequence number yet."""

    prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"{self.prefix}_{os.urandom(16).hex()}"
        self.status = "in_progress"

    @abstractmethod
    def object(self) -> Json:
        """The item as it stands."""

    def open(self) -> list[Json]:
        """The events of its beginning."""
        return [self._of_item("added")]

    def close(self, status: str) -> list[Json]:
        """The events of its end."""
        self.status = status
        return [*self._last(), self._of_item("done")]

    def _last(self) -> list[Json]:
        """What comes before the end of the item itself."""
        return []

    def _of_item(self, what: str) -> Json:
        return {"type": f"response.output_item.{what}", "output_index": self.index, "item": self.object()}

    def _event(self, kind: str, **fields: Any) -> Json:
        return {"type": f"response.{kind}", "item_id": self.id, "output_index": self.index, **fields}


class _TextItem(Item):
    """An item whose content is one part of text."""

    kind: ClassVar[str]

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def open(self) -> list[Json]:
        return [*super().open(), self._event("content_part.added", content_index=0, part=self._part())]

    def _last(self) -> list[Json]:
        done = self._event(f"{self.kind}.done", content_index=0, text=self.text, **self._extra())
        return [done, self._event("content_part.done", content_index=0, part=self._part())]

    def _part(self) -> Json:
        return {"type": self.kind, "text": self.text}

    def _content(self) -> list[Json]:
        return [] if self.status == "in_progress" else [self._part()]

    def _extra(self) -> Json:
        return {}


class Reasoning(_TextItem):
    """What the model thought. encodes: it is also in `encrypted_content`."""

    prefix, kind = "rs", "reasoning_text"

    def __init__(self, index: int, encodes: bool) -> None:
        super().__init__(index)
        self._encodes = encodes

    def add(self, text: str) -> list[Json]:
        self._texts.append(text)
        return [self._event("reasoning_text.delta", content_index=0, delta=text)]

    def object(self) -> Json:
        is_encoded = self._encodes and self.status != "in_progress"
        return {
            "type": "reasoning",
            "id": self.id,
            "summary": [],
            "content": self._content(),
            "encrypted_content": encode_reasoning(self.text) if is_encoded else None,
            "status": self.status,
        }


class Message(_TextItem):
    """What the model says."""

    prefix, kind = "msg", "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[Json] = []

    def add(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[Json]:
        content = (logprobs_object(logprobs) or {"content": []})["content"]
        self._texts.append(text)
        self._logprobs += content
        return [self._event("output_text.delta", content_index=0, delta=text, logprobs=content)]

    def object(self) -> Json:
        head = {"type": "message", "id": self.id, "role": "assistant", "status": self.status}
        return {**head, "content": self._content()}

    def _part(self) -> Json:
        return {**super()._part(), "annotations": [], "logprobs": self._logprobs}

    def _extra(self) -> Json:
        return {"logprobs": self._logprobs}


class _Call(Item):
    """A call. tool_call: what it is, once it is whole."""

    def __init__(self, index: int, call_id: str, origin: Origin) -> None:
        super().__init__(index)
        self.tool_call: ToolCall | None = None
        self._head = {"id": self.id, "call_id": call_id, "name": origin.name}
        if origin.namespace is not None:
            self._head["namespace"] = origin.namespace

    @abstractmethod
    def add(self, text: str) -> list[Json]:
        """More of the JSON text of the arguments."""


class FunctionCall(_Call):
    """A call of a function."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, origin: Origin) -> None:
        super().__init__(index, call_id, origin)
        self._texts: list[str] = []

    def add(self, text: str) -> list[Json]:
        self._texts.append(text)
        return [self._event("function_call_arguments.delta", delta=text)]

    def object(self) -> Json:
        return {"type": "function_call", **self._head, "arguments": "".join(self._texts), "status": self.status}

    def _last(self) -> list[Json]:
        text, name = "".join(self._texts), self._head["name"]
        return [self._event("function_call_arguments.done", name=name, arguments=text)]


class CustomCall(_Call):
    """A call of a custom tool: the client gets its one argument as plain text."""

    prefix = "ctc"

    def __init__(self, index: int, call_id: str, origin: Origin) -> None:
        super().__init__(index, call_id, origin)
        self._reader = StringReader(INPUT)
        self._input = ""

    def add(self, text: str) -> list[Json]:
        return self._more(self._reader.feed(text))

    def object(self) -> Json:
        return {"type": "custom_tool_call", **self._head, "input": self._input, "status": self.status}

    def _last(self) -> list[Json]:
        whole = self._whole_input()
        rest = self._more(whole[len(self._input) :]) if whole.startswith(self._input) else []
        self._input = whole
        return [*rest, self._event("custom_tool_call_input.done", input=whole)]

    def _more(self, text: str) -> list[Json]:
        self._input += text
        return [self._event("custom_tool_call_input.delta", delta=text)] if text else []

    def _whole_input(self) -> str:
        """The input; a model that calls the parameter something else means the same."""
        arguments = self.tool_call.arguments if self.tool_call else {}
        values = [arguments[INPUT]] if INPUT in arguments else list(arguments.values())
        return values[0] if len(values) == 1 and isinstance(values[0], str) else self._input
