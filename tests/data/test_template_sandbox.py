"""Hostile templates are refused within seconds, in little memory, by name; and all that templates really use works."""
import threading
import time
import tracemalloc

import pytest

from lorafast.data import template_sandbox
from lorafast.data.chat_template import ChatTemplate
from lorafast.errors import FormatError, TemplateRefusal

MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
MB = 1 << 20


def render(source, messages=MESSAGES, **options):
    return ChatTemplate(source, "it", bos_token="<s>", eos_token="</s>").render(messages, **options)


def loops(body, depth=3, n=99999):
    return f"{{% for i in range({n}) %}}" * depth + body + "{% endfor %}" * depth


DOUBLE = "{{% set ns = namespace(a={start}) %}}{{% for i in range(60) %}}{{% set ns.a = {more} %}}{{% endfor %}}"
KEEP = "".join(f"{{{{% set a{i} = {{0}} %}}}}" for i in range(60))
HOSTILE = {
    "loops": loops(""), "loops that write": loops("x" * 1000), "loops that count": loops("{% set x = 1 %}", 2),
    "loops in a macro": "{% macro m(n) %}{% for i in range(99999) %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "buffered loops": "{% set x %}" + loops("y" * 1000) + "{% endset %}",
    "text times": "{{ 'a' * 10**9 }}", "list times": "{{ [0] * 10**8 }}", "times text": "{% set x = 10**9 * 'a' %}",
    "times within a list": "{{ [[1] * 90000] * 90000 }}",
    "power": "{{ 2**100000000 }}", "product": "{% set ns = namespace(a=3) %}" + loops("{% set ns.a = ns.a * ns.a %}",
                                                                                      1, 99),
    "power of power": "{{ 9**9**9999 }}", "unused power": "{% set x = 7 ** 99999999 %}",
    "tojson": "{{ messages | tojson(indent=10**8) }}", "indent text": "{{ messages | tojson(indent='x' * 100000) }}",
    "center": "{{ 'a' | center(10**9) }}", "method center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}", "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a' | indent(10**9, true) }}",
    "format": "{{ '%1000000000d' | format(1) }}", "percent": "{{ '%1000000000d' % 1 }}",
    "star": "{{ '%*d' % (10**9, 1) }}",
    "method format": "{{ '{:1000000000}'.format(1) }}", "nested format": "{{ '{:{}}'.format(1, 10**9) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "lipsum": "{{ lipsum(10**9) }}", "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9) }}", "wordwrap": "{{ 'a b' | wordwrap(1, true, 'x' * 10**7) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}", "encode": "{{ 'a'.encode('utf-32') }}",
    "doubled text": DOUBLE.format(start="'a'", more="ns.a + ns.a"), "joined text": DOUBLE.format(start="'a'",
                                                                                                 more="ns.a ~ ns.a"),
    "doubled list": DOUBLE.format(start="[1]", more="ns.a + ns.a"),
    "nested list": DOUBLE.format(start="[1]", more="[ns.a, ns.a]") + "{{ ns.a }}",
    "nested tuple": DOUBLE.format(start="(1, 1)", more="(ns.a, ns.a)") + "{{ {ns.a: 1} }}",
    "nested dict": DOUBLE.format(start="{}", more="dict(a=ns.a, b=ns.a)") + "{{ ns.a | tojson }}",
    "replace": DOUBLE.format(start="'aa'", more="ns.a.replace('a', ns.a)"),
    "filter replace": DOUBLE.format(start="'aa'", more="ns.a | replace('a', ns.a)"),
    "join": DOUBLE.format(start="'aa'", more="ns.a.join([ns.a, ns.a])"),
    "filter join": DOUBLE.format(start="'aa'", more="[ns.a, ns.a] | join(ns.a)"),
    "upper": "{% set x = 'a' * 9000000 %}" + loops("{{ x.upper() }}", 1),
    "sum": "{{ ([[1] * 9999] * 999) | sum(start=[]) }}",
    "split": "{% set x = 'a ' * 5000000 %}{{ x.split() | length }}",
    "comparison": "{% set x = [[1] * 500] * 500 %}{% set y = [[1] * 500] * 500 %}" + loops("{% set z = x == y %}", 2),
    "lists of one": KEEP.format("range(99999) | batch(1) | list"),
    "undefined items": KEEP.format("range(99999) | map(attribute='x') | list"),
    "groups": KEEP.format("range(99999) | batch(1) | groupby(0) | list"),
    "arguments": KEEP.format("cycler(*range(99999))"),
    "slices": "{% set x = 'a' * 5000000 %}" + KEEP.format("x[1:]"),
    "filters that only count": loops("{{ range(99999) | map(attribute='a') | select | unique | list | length }}", 1),
    "search in a range": loops("{{ 0.5 in range(99999) }}", 1),
    "filtered loop": loops("{% for j in range(99999) if false %}{% endfor %}", 1),
    "wide fields": "{{ ('{0:9999}' * 100000).format(1) }}", "many fields": "{{ ('{0}' * 99999).format('x' * 9999) }}",
    "wide fields of %": "{{ ('%(a)9999d' * 99999) % {'a': 1} }}",
    "wide fields of a filter": "{{ ('%(a)9999d' * 99999) | format(a=1) }}",
    "long floats": "{{ ('%(a)f' * 99999) % {'a': 1e308} }}",
    "long integers": "{{ ([2**2000] * 99999) | join }}",
    "deep JSON": "{% set x = [] %}{% set ns = namespace(d=x) %}{% for i in range(200) %}{% set ns.d = [ns.d] %}"
                 "{% endfor %}{% set _ = x.append([0] * 99999) %}{{ ns.d | tojson(indent=100) }}",
    "wide JSON": "{{ ([0] * 99999) | tojson(separators=('x' * 9999, ':')) }}",
    "escaped JSON": "{{ ('\U0001d11e' * 3000000) | tojson(ensure_ascii=true) }}",
    "escaped text": "{% set x = '\U0001d11e' ~ '&' * 4000000 %}{{ ('' | e) + x }}",
    "join of what comes": "{{ range(99999) | reject('none') | join('x' * 9999) }}",
    "method join of what comes": "{{ ('x' * 9999).join('ab' * 50000 | list | reject('none')) }}",
    "long attribute": loops("{{ range(1) | map(attribute='0.' * 99999 ~ '0') | list }}", 1),
    "search backwards": "{{ ('a' * 1000000).rfind('ab' ~ 'a' * 500000) }}",
    "strip": "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
    "trim": "{{ ('a' * 1000000) | trim('b' * 1000000 ~ 'a') }}",
    "accents": "{{ ('\xe9' * 5800000) | upper | length }}",
    "method accents": "{{ ('\xe9' * 5800000).upper() | length }}",
    "int": "{{ ('9' * 1000000) | int }}", "deep macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_refused(source):
    begin = time.thread_time()
    with pytest.raises((TemplateRefusal, FormatError), match=r"^it (cannot render|is not a)") as error:
        render(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.thread_time() - begin < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_take_little_memory(source):
    tracemalloc.start()
    try:
        with pytest.raises((TemplateRefusal, FormatError)):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 64 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source, reason", [
    ("{% break %}", "is not a usable jinja2 template"), ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "is not a"),
    ("{% if a %}" * 3000 + "{% endif %}" * 3000, "is not a"), ("{{ " + "-" * 20000 + "1 }}", "is not a"),
    ("{{ " + "9" * 5000 + " }}", "digits|cannot"), ("{% for x in y %}" * 25 + "{% endfor %}" * 25, "too many|cannot"),
    ("x" * 50_000, "more than 48 KB"),
    ("{{a.b}}" * 5000, "more than 8,192 expressions"),
    ("{% include 'x' %}", "no loader"), ("{{ 1 | urlize }}", "urlize"),
])
def test_odd_sources(source, reason):
    with pytest.raises((TemplateRefusal, FormatError), match=reason):
        render(source)


def test_nothing_is_computed_while_compiling():
    ChatTemplate("{{ 'a' * 10**9 }}{{ 'a' | center(10**9) }}{{ 2**10**9 }}", "it", bos_token="", eos_token="")


@pytest.mark.parametrize("source, text", [
    ("{{ 'a' * 3 ~ 1 ~ none }}", "aaa1None"), ("{{ 'a' | center(5) }}|", "  a  |"), ("{{ 2 ** 10 + 1 }}", "1025"),
    ("{{ '%s: %02d' % ('x', 3) }}", "x: 03"), ("{{ '{} {:>3}'.format(1, 2) }}", "1   2"),
    ("{{ messages[0].content.split(' ') | join('-') }}", "a-b"), ("{{ messages | map(attribute='role') | list }}",
                                                                   "['user', 'assistant']"),
    ("{{ messages[0].get('x', 'no') }}{{ messages[0]['role'].upper() }}", "noUSER"),
    ("{% for k, v in messages[0].items() %}{{ k }}={{ v }} {% endfor %}", "role=user content=a b "),
    ("{% set x = messages + [{'role': 'x'}] %}{{ x | length }}{{ messages[::-1][0].role }}", "3assistant"),
    ("{% macro m(x, y=2) %}[{{ x + y }}]{% endmacro %}{{ m(1) }}{{ m(1, y=5) }}", "[3][6]"),
    ("{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.previtem.role if loop.previtem }} {% endfor %}",
     "0False 1Trueuser "),
    ("{% for m in [[1, [2]]] recursive %}{{ m if m is number else loop(m) }}{% endfor %}", "12"),
    ("{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.role %}{% endfor %}{{ ns.x }}",
     "userassistant"),
    ("{{ messages[0].content is string and 'a' in messages[0].content and 3 in [1, 2, 3] }}", "True"),
    ("{{ (1, 2) == (1, 2) }}{{ {'a': [1]} | tojson }}{{ 'abc'[1:] }}{{ messages[0].x is defined }}",
     'True{"a": [1]}bcFalse'),
    ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first | trim | indent(2) }}",
     "a b"),
    ("{% set content %}x{{ messages[1].content }}{% endset %}{{ content | replace('x', 'yy') | title }}", "Yyc"),
])
def test_what_templates_use_works(source, text):
    assert render(source) == text


def test_long_input_may_give_long_output():
    long = "word " * (2 * MB)
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content.strip() + '\\n' }}{% endfor %}"
    assert len(render(source, [{"role": "user", "content": long}] * 2)) > 20 * MB
    assert len(render(source, MESSAGES * 5000)) > 10_000


def test_a_busy_machine_is_given_time(monkeypatch):
    """What is over by the clock may use as much of the processor again."""
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.0)
    now = iter(range(1000))
    monkeypatch.setattr(template_sandbox.time, "thread_time", lambda: 0.0)
    assert len(render(loops("x", 1, 2000))) == 2000
    monkeypatch.setattr(template_sandbox.time, "thread_time", lambda: next(now))
    with pytest.raises(TemplateRefusal, match="seconds"):
        render(loops("x", 1, 2000))


def test_several_threads_may_share_a_template():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}", "it", bos_token="", eos_token="")
    results = []
    threads = [threading.Thread(target=lambda: results.extend(template.render(MESSAGES) for _ in range(50)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["userassistant"] * 200
