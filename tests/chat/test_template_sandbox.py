import pytest

from chat.chat_checks import one_line
from codemill.chat.template import ChatTemplate, ControlMarks
from codemill.errors import CodemillError, UsageError

MESSAGES = [{"role": "user", "content": "hi </think>"}]
HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ (messages|map(attribute='__class__')|list)[0].mro() }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ dict.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__class__=1) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 10 ** 100000 }}",
    "{% include 'passwords' %}",
    "{% import 'os' as os %}",
]
BROKEN = [
    "{% if %}",
    "{{ messages",
    "{{ undefined_name.attribute }}",
    "{{ 'a' + 1 }}",
    "{{ 1 / 0 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ none | tojson(indent='x', separators=3) }}",
]


@pytest.mark.parametrize("source", HOSTILE + BROKEN)
def test_hostile_and_broken_templates_fail_in_one_line(source: str) -> None:
    for marks in (None, ControlMarks(["</think>"])):
        with pytest.raises(CodemillError, match=r"^chat template: ") as caught:
            ChatTemplate(source).render(MESSAGES, marks=marks)
        one_line(caught)


def test_what_a_template_rejects_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="chat template: no, not this") as caught:
        ChatTemplate("{{ raise_exception('no, not this\nor that') }}").render(MESSAGES)
    one_line(caught)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'a': '<ü>'} | tojson }}", '{"a": "<ü>"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        (
            "{{ dict(a=1)['a'] }}{{ 3 * 4 }}{{ 'ab' * 2 }}{{ 2 ** 5 }}{{ 2 ** 0.5 > 1 }}",
            "112abab32True",
        ),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2"),
    ],
)
def test_what_templates_may_use(source: str, expected: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == expected


def test_marks_tell_written_tokens_from_those_looked_for() -> None:
    marks = ControlMarks(["<|im_end|>", "</think>", "<|im"])
    source = "<|im_end|>{{ messages[0].content.split('</think>')[0] ~ '</think>' }}{{ messages[0].content }}"
    marked = ChatTemplate(source).render(MESSAGES, marks=marks)
    assert list(marks.split(marked)) == [("", "<|im_end|>"), ("hi ", "</think>"), ("hi </think>", None)]
    assert marks.unmark(marked) == ChatTemplate(source).render(MESSAGES)


def test_a_template_that_reads_what_it_wrote_is_refused() -> None:
    source = "{% set t = '</think>' %}{{ 'yes' if t in messages[0].content else 'no' }}"
    assert ChatTemplate(source).render(MESSAGES) == "yes"
    with pytest.raises(CodemillError, match="control tokens") as caught:
        ChatTemplate(source).render(MESSAGES, marks=ControlMarks(["</think>"]))
    one_line(caught)
