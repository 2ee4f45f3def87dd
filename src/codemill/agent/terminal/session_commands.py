"""Slash commands about sessions."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codemill.agent.compaction import conversation_tokens
from codemill.agent.plan_mode import without_news
from codemill.agent.stops import ContextTooLong
from codemill.agent.terminal.work import Work
from codemill.errors import CodemillError, UsageError

MAX_LISTED = 15
INIT = """Look at this project: its README, how it is built and tested, its main folders, its conventions. Then write \
AGENTS.md in its root, for coding agents that see the project for the first time: what it is, the commands to build, \
test and lint it, where things are, and rules that cannot be seen from the code. At most 60 lines, no general advice. \
If there is an AGENTS.md, improve it."""


def clear(work: Work, argument: str) -> None:
    """Begin anew; the old session stays in its file."""
    old = work.session.id
    work.switch(work.store.create(cwd=os.getcwd()))
    work.voice.note(f"a new session; /resume {old} goes back to the old one")


def sessions(work: Work, argument: str) -> None:
    """What there is to go on with."""
    found = work.store.list()
    if not found:
        work.voice.note("there are no sessions of this folder yet")
        return
    rows = [f"| {info.id} | {_ago(info.changed)} | {_cell(info.request)} |" for info in found[:MAX_LISTED]]
    more = f"\n\n{len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    work.voice.say("\n".join(["| session | used | request |", "|---|---|---|", *rows]) + more)


def resume(work: Work, argument: str) -> None:
    """Go on with a session. Raises UsageError if it is not clear which."""
    if argument:
        info = work.store.find(argument)
    else:
        others = [info for info in work.store.list() if info.id != work.session.id]
        if not others:
            raise UsageError("there is no other session of this folder")
        info = others[0]
    if info.id == work.session.id:
        raise UsageError(f"this is session {info.id} already")
    work.switch(work.store.open(info))
    show_where_it_was(work)


def show_where_it_was(work: Work) -> None:
    """The last request and the last answer of a session that goes on."""
    messages = work.session.messages
    count = sum(message["role"] != "system" for message in messages)
    work.voice.note(f"session {work.session.id} goes on, {count} messages")
    for role in ("user", "assistant"):
        said = [message["content"] for message in messages if message["role"] == role and message.get("content")]
        if said:
            text = without_data(said[-1])
            work.voice.say(text if role == "assistant" else "\n".join(f"> {line}" for line in text.split("\n")[:6]))


def fork(work: Work, argument: str) -> None:
    """Go on in a copy."""
    old = work.session.id
    work.switch(work.store.fork(work.session))
    work.voice.note(f"session {work.session.id}, a copy of {old}, which stays as it is")


def compress(work: Work, argument: str) -> None:
    """Have the model summarise the conversation. Raises CodemillError if there is nothing to leave out."""
    before = conversation_tokens(work.session)
    try:
        work.bench.agent.compact()
    except ContextTooLong:
        raise UsageError("the conversation is too short to leave anything out") from None
    work.measure()
    work.voice.note(f"summarised: about {before:,} tokens before, {conversation_tokens(work.session):,} now")


def init(work: Work, argument: str) -> None:
    """Have the agent write down what agents should know."""
    work.run_task(INIT)


def export(work: Work, argument: str) -> None:
    """Write the conversation for people. Raises UsageError without a name, or if the file is there."""
    if not argument:
        raise UsageError("/export FILE: give the file to write, such as session.md")
    path = work.options.root / Path(argument).expanduser()
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write("\n\n".join(_as_markdown(work.session.messages)) + "\n")
    except FileExistsError:
        raise UsageError(f"{path} exists: give another name") from None
    except OSError as error:
        raise CodemillError(f"{path}: {error.strerror}") from error
    work.voice.note(f"written to {path}")


def without_data(text: str) -> str:
    """A user's message without the files that were added to it, and what the agent was told of its mode."""
    from codemill.agent.terminal.mentions import DATA

    return DATA.split(without_news(text))[0].strip()


def _as_markdown(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        text = str(message.get("content") or "").strip()
        if message["role"] == "user":
            yield f"## User\n\n{text}"
        elif message["role"] == "tool":
            yield _fenced(text)
        elif message["role"] == "assistant":
            yield "\n\n".join(part for part in ("## Agent", text, *map(_call, message.get("tool_calls") or ())) if part)


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return _fenced(f"{function['name']} {function['arguments']}")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return without_data(text)[:60].replace("|", "\\|").replace("`", "")


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
