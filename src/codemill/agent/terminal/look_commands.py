"""Slash commands that show something."""

from codemill.agent.approval import MODES
from codemill.agent.prompt import MEMORY_FILES, read_memory
from codemill.agent.terminal.activity import duration
from codemill.agent.terminal.safe_text import safe_line
from codemill.agent.terminal.work import Work
from codemill.errors import UsageError

MODE_HELP = {
    "plan": "looks only, and presents a plan",
    "default": "asks before each change and command",
    "auto-edit": "edits without asking, and asks before commands",
    "yolo": "never asks; commands still run in the sandbox",
}


def mode(work: Work, argument: str) -> None:
    """Show or set the approval mode. Raises UsageError for one that there is not."""
    if argument:
        set_mode(work, argument)
        return
    lines = [f"| {'**' + name + '**' if name == work.mode else name} | {MODE_HELP[name]} |" for name in MODES]
    work.voice.say("\n".join(["| mode | |", "|---|---|", *lines]))


def set_mode(work: Work, name: str) -> None:
    """Set the mode and say what it means."""
    chosen = [known for known in MODES if known == name]
    if not chosen:
        raise UsageError(f"there is no mode {name}: choose {', '.join(MODES)}")
    work.bench.gate.mode = chosen[0]
    work.voice.note(f"{name}: {MODE_HELP[name]}")


def next_mode(work: Work) -> None:
    """The mode after the present one."""
    work.bench.gate.mode = MODES[(MODES.index(work.mode) + 1) % len(MODES)]


def todos(work: Work, argument: str) -> None:
    """The list that the agent keeps."""
    marks = {"pending": " ", "in_progress": ">", "completed": "x"}
    lines = [
        f"- \\[{marks.get(todo.get('status', ''), ' ')}] {todo.get('content', '')}" for todo in work.bench.session.todos
    ]
    if lines:
        work.voice.say("\n".join(lines))
    else:
        work.voice.note("there are no todos")


def memory(work: Work, argument: str) -> None:
    """What each session's prompt has from files."""
    from codemill.agent.configuration import config_folder

    found = read_memory(work.options.root, config_folder() / MEMORY_FILES[0])
    if not found:
        work.voice.note(f"nothing yet: write {MEMORY_FILES[0]} in this folder, or let /init do it")
    for name, text in found:
        work.voice.say(f"**{name}**, {len(text):,} characters")
        work.voice.say(text)


def permissions(work: Work, argument: str) -> None:
    """The rules from files; what "always" allowed holds for this session."""
    from codemill.agent.configuration import FILE, config_folder

    configuration = work.options.configuration
    lines = [f"- mode {work.mode}: {MODE_HELP[work.mode]}"]
    for action in ("allow", "ask", "deny"):
        lines += [f"- {action} `{pattern}`" for pattern in getattr(configuration, action)]
    network = "reach the network" if work.options.network else "have no network"
    lines.append(f"- commands run in the sandbox, write only in {work.options.root} and {network}")
    lines.append(f"- rules are read from {config_folder() / FILE} and .codemill/{FILE}")
    work.voice.say("\n".join(lines))


def model(work: Work, argument: str) -> None:
    """Which model answers; with an argument another one of the same server. Raises UsageError if there is no such."""
    from codemill.agent.endpoint_model import EndpointModel

    status = work.voice.status
    length = f", {status.context_length:,} tokens of context" if status.context_length else ""
    elsewhere = f"`codemill agent --model SPEC --resume {work.session.id}`"
    if not isinstance(work.model, EndpointModel):
        if argument:
            raise UsageError(f"a model in this process cannot be changed: end, and start {elsewhere}")
        work.voice.say(f"{work.model.name}{length}. Another one: {elsewhere}")
        return
    names = work.model.others
    if not argument:
        lines = [f"- {'**' + safe_line(name) + '**' if name == work.model.name else safe_line(name)}" for name in names]
        work.voice.say("\n".join([f"{status.model}{length}. The server has:", "", *lines]))
        return
    if argument not in names:
        raise UsageError(
            f"the server has no model {argument}: choose {', '.join(names)}; or end, and start {elsewhere}"
        )
    work.use(work.model.another(argument))
    work.voice.note(f"{argument} answers from now on")


def cost(work: Work, argument: str) -> None:
    """Tokens and time since this terminal was opened."""
    status = work.voice.status
    computed = status.total_prompt_tokens - status.total_cached_tokens
    rows = [
        ("replies", f"{status.steps:,}"),
        ("prompt tokens computed", f"{computed:,}"),
        ("prompt tokens cached", f"{status.total_cached_tokens:,}"),
        ("answer tokens", f"{status.total_answer_tokens:,}"),
        ("time of the model", duration(status.model_seconds)),
        ("conversation", f"{status.context_tokens:,} tokens"),
    ]
    work.voice.say("\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]))
