#!/usr/bin/env python3
"""Expected renderings for src/tokenizer's chat template tests, from PyPI's jinja2 set up as transformers does.

Writes tests/data/tokenizer/chat_expected.json: the templates of tests/data/tokenizer/templates over several
conversations, and the snippets below. An entry has "output", or "error": true where jinja2 raises.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/data/tokenizer"
NOW = datetime.datetime(2024, 2, 29, 12, 34, 56)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather <now> & \"later\" – in Zürich",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "it's a name"},
            "days": {"type": "integer", "minimum": 1, "default": 3.5},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "spots": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}}}},
        "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "ping", "description": "", "parameters": {"type": "object",
                                                                                       "properties": {}}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "call12345", "type": "function", "function": {
    "name": "get_weather", "arguments": {"city": "Köln", "days": 2, "deep": {"a": [1, 2.0, None, True, "x\ny"]}}}}]}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "{\"t\": -3.5}"}
CONVERSATIONS = {
    "user": {"messages": [{"role": "user", "content": "Hi there"}]},
    "user_prompt": {"messages": [{"role": "user", "content": "  Hi <b> & 'q' \"w\"\n\n"}], "add_generation_prompt": True},
    "system": {"messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}],
               "add_generation_prompt": True, "enable_thinking": False},
    "turns": {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
                           {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, {"role": "user", "content": "c"},
                           {"role": "assistant", "content": "d"}, {"role": "user", "content": "<|im_end|> e 世界 😀"}],
              "add_generation_prompt": True},
    "tools": {"messages": [{"role": "user", "content": "w?"}], "tools": TOOLS, "add_generation_prompt": True,
              "date_string": "1 May 2030"},
    "calls": {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "w?"}, CALL, RESULT,
                           {"role": "assistant", "content": "cold"}, {"role": "user", "content": "thanks"}],
              "tools": TOOLS, "add_generation_prompt": True},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"},
                                                        {"type": "text", "text": "two"}]}]},
    "wrong_order": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    "empty": {"messages": []},
}

VARIABLES = {
    "messages": [{"role": "user", "content": "Hello\nWorld"}, {"role": "assistant", "content": "b"}],
    "n": 7, "f": 2.5, "big": 12345678901234567890, "neg": -7, "t": True, "nothing": None, "s": "  Some tExt's \"q\" ",
    "u": "naïve Straße İı 世界 😀", "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "e": [],
    "d": {"b": 1, "a": {"x": [1, 2]}, "C": None, "items": 5}, "rows": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "X"}],
    "lines": "one\n\n  two\r\nthree\n", "html": "<a href='x'>&</a>",
}
EXPRESSIONS = """
1 + 2 * 3 - 4 / 2
7 // 2 ~ ',' ~ -7 // 2 ~ ',' ~ 7 % 3 ~ ',' ~ -7 % 3 ~ ',' ~ 7.5 // 2 ~ ',' ~ -7.5 % 2
2 ** 10 ~ ' ' ~ 2 ** -1 ~ ' ' ~ 2 ** 0.5
1e3 ~ ' ' ~ 1.5e-7 ~ ' ' ~ 1e16 ~ ' ' ~ 123456789.125 ~ ' ' ~ 0.1 + 0.2 ~ ' ' ~ 1_000 ~ ' ' ~ 0x1F
1 / 3
n / 7 ~ ' ' ~ f * 2
not t, not nothing, t and n, nothing or 'x', e or 'empty', '' and 1
1 < 2 < 3, 1 < 2 > 3, 3 >= 3.0, 'a' < 'b', [1, 2] < [1, 3], 1 == 1.0, '1' == 1, none == false, t == 1
n in l, 3 in l, 'b' in d, 'x' not in d, 'Some' in s, '' in ''
'a' if t, 'b' if not t, 'c' if not t else 'd'
[1, 'two', 3.0, none, true, [], {}, (), (1,), (1, 2), {'k': 'v', 2: [3]}]
{'a': 1, 'b': {'c': "it's"}, 'q': 'say "hi"', 'both': '\\'"', 'nl': 'a\\nb\\t\\\\', 'u': u, 'ctl': '\\x01\\u200b'}
undefined_name, undefined_name ~ 'x', undefined_name is defined, undefined_name | length, undefined_name | default('d')
undefined_name.attribute
undefined_name + 1
d.missing, d['missing'], d.missing is defined, d['items'], d.a.x[1], d.a['x'][-1], d.C, d.C is none
d.items is callable, d.keys() | list, d.values() | list, d.get('b'), d.get('zz'), d.get('zz', 0), d.get('C', 1)
nothing.x is defined, 'abc'.x is defined, nothing['a'] is undefined, l['a'] is undefined, l[99] is undefined
l[0], l[-1], l[1:], l[:-1], l[::-1], l[::2], l[5:], l[-2:], l[2:0:-1], (1, 2, 3)[1:]
s[2:6], s[-3:], u[0], u[-1], u[-2], u[3:8], u[::-1], s[100:], s[::3]
messages[0].content.split('\\n'), messages[-1]['role'], messages | length, messages | map(attribute='role') | list
'a,b,,c'.split(','), 'a,b,,c'.split(',', 1), 'a b  c '.split(), ' a b c'.split(none, 1), 'a,b,c'.rsplit(',', 1), 'a b c'.rsplit(none, 1)
''.split(), ''.split(','), 'abc'.split('abc'), 'a--b--c'.split('--')[1]
lines.splitlines(), lines.splitlines(true), 'a\\x0bb\\x85c'.splitlines(), ''.splitlines()
s.strip() ~ '|' ~ s.lstrip() ~ '|' ~ s.rstrip() ~ '|', 'xxaxx'.strip('x'), 'abcba'.lstrip('ab'), 'path/'.rstrip('/')
s.upper(), s.lower(), s.title(), s.strip().capitalize(), u.upper(), u.lower(), "they're bill's".title()
s | upper, s | lower, s | title, s | trim | capitalize, "they're bill's (no-one) x" | title, u | title
'hello'.startswith('he'), 'hello'.endswith('lo'), 'hello'.startswith(('x', 'h')), 'hello'.endswith(('x', 'y'))
'hello'.find('l'), 'hello'.rfind('l'), 'hello'.find('z'), u.find('世'), 'hello'.count('l'), 'hello'.count(''), 'hello'.find('l', 3)
'hello'.index('z')
'12'.isdigit(), ''.isdigit(), 'a1'.isalnum(), 'a1'.isalpha(), ' \\t'.isspace(), 'AB'.isupper(), 'ab1'.islower(), '1'.isupper()
'a-b-c'.replace('-', '+'), 'a-b-c'.replace('-', '+', 1), 'abc'.replace('', '.'), 'aaa' | replace('aa', 'b'), 5 | replace(5, 6)
'x'.join(['a', 'b']), ', '.join(words), 'prefix_x'.removeprefix('prefix_'), 'x.py'.removesuffix('.py')
'7'.zfill(3), '-7'.zfill(4), 'ab'.center(7) ~ '|', 'ab'.ljust(4) ~ '|', 'ab'.rjust(4), 'k=v=w'.partition('='), 'k=v=w'.rpartition('=')
'{} and {}'.format(1, 'b'), '{0}{1}{0}'.format('a', 'b'), '{x}'.format(x=[1]), '{{}}'.format()
'%s-%s' % (1, 'b'), '%d%%' % 5.7, '%.2f' % f, '%r' % 'q', '%s' % d.a, '%s' | format('x')
words | sort, words | sort(reverse=true), words | sort(case_sensitive=true), l | sort, rows | sort(attribute='k') | map(attribute='k') | list
words | unique | list, words | join, words | join('-'), rows | join(',', attribute='k'), l | join(' '), 'abc' | join('.')
l | first, l | last, e | first, e | last, l | min, l | max, e | max, words | min, words | max, l | sum, rows[:2] | sum(attribute='v')
l | reverse | list, 'abc' | reverse, l | list, 'abc' | list, d | list, (1, 2) | list
d | dictsort, d | dictsort(true), {'b': 1, 'a': 2} | dictsort(by='value'), {'b': 1, 'a': 2} | dictsort(reverse=true), d | items | list | length
rows | map(attribute='v', default=0) | list, rows | map(attribute='v') | list, words | map('upper') | list, l | map('string') | join, [[1, 2], [3]] | map('first') | list
rows | selectattr('v') | list, rows | selectattr('v', 'defined') | map(attribute='k') | list, rows | rejectattr('k', 'equalto', 'x') | list | length
l | select('odd') | list, l | reject('odd') | list, l | select('greaterthan', 1) | list, [0, 1, '', 'a', none] | select | list, nothing | select | list, nothing | map('upper') | list
rows | selectattr('k', 'in', ['x', 'y']) | list | length, rows | selectattr('v', '>', 1) | list
'yes' if e | select else 'no', 'yes' if e | map('upper') | list else 'no'
(l | map('string')) | length
'42' | int, '42.9' | int, 'x' | int, 'x' | int(5), 3.99 | int, none | int, ' 12 ' | int, 'ff' | int(0, 16), true | int, '1_0' | int
'1.5' | float, 'x' | float, 'x' | float(2.5), 3 | float, 'inf' | float, '1e3' | float
2.5 | round, 3.5 | round, 2.567 | round(2), 2.5 | round(0, 'ceil'), 2.567 | round(1, 'floor'), 7 | round, 1234.5 | round(-2), 2.675 | round(2)
neg | abs, -2.5 | abs, n | string ~ 'x', none | string, true | string, l | string
s | length, u | length, l | count, d | length, (1, 2) | length, '' | length
5 | length
none | length
d | tojson, l | tojson, u | tojson, html | tojson, none | tojson, true | tojson, 1.0 | tojson, '\\x00\\x1f\\x7f\\u2028"\\\\/' | tojson, big | tojson
d | tojson(indent=2)
[[], {}, [[]], {'a': {}}] | tojson(indent=1)
d | tojson(separators=(',', ':')), {'b': 1, 'a': 2} | tojson(sort_keys=true), u | tojson(ensure_ascii=true), {1: 2, true: 3, none: 4, 1.5: 5} | tojson
undefined_name | tojson
html | e, html | escape, html | safe, html | e | e, html | e | forceescape, (html | safe) + '<', '<' + (html | e), (html | safe) ~ '<'
lines | indent, lines | indent(2), lines | indent(2, true), lines | indent(2, first=true, blank=true), 'a\\nb' | indent('> ')
[1, 2, 3, 4, 5] | batch(2) | list, [1, 2, 3] | batch(2, 'x') | list, 'a b  c' | wordcount
d | attr('items') is callable, d | attr('b') is defined
n is number, f is number, t is number, 'x' is number, n is integer, f is float, t is integer, t is boolean, 1 is boolean
'x' is string, l is sequence, d is sequence, 'x' is sequence, 5 is sequence, l is iterable, d is iterable, 'x' is iterable, 5 is iterable, none is iterable
d is mapping, l is mapping, none is none, undefined_name is none, t is true, 1 is true, t is false, false is false
3 is odd, 4 is even, 9 is divisibleby 3, 9 is divisibleby(2), 'a' is in 'abc', 3 is in l, 'A' is upper, 'a' is lower, 'aB' is lower
1 is eq 1, 1 is ne 2, 1 is lt 2, 2 is ge 2, 'a' is sameas 'a', 1 is not eq 1, not 1 is eq 1, n is defined and n is not none
undefined_name is sequence, undefined_name is iterable, undefined_name is mapping, undefined_name == undefined_other, undefined_name in l
range(5) | list, range(1, 4) | list, range(5, 0, -2) | list, range(0) | list
dict(a=1, b=2), dict([('x', 1)]), dict(d, b=9), namespace(a=1).a, namespace({'x': 2}).x, namespace(a=1).b is defined
'a' 'b' "c", 'ab' * 3, 3 * 'ab', [1] * 2 + [3], (1,) + (2,), '' * 5, 'x' * -1
-n, +n, --n, -f, - 2 ** 2, not not t, -(1 + 2) * 3
'a' + 1
1 + 'a'
l + (1,)
none + 1
[] < {}
1 / 0
5 % 0
{[1]: 2}
l()
raise_exception('no')
unknown_filter_operand | nosuchfilter
n is nosuchtest
strftime_now('%Y-%m-%d %H:%M:%S')
(1, 2) == [1, 2], {'a': 1} == {'a': 1.0}, [1, [2]] == [1, [2]]
'a\\x41\\u00e9\\n\\'\\q', "double \\" quote", 'tab\\there'
loop is defined
d.copy() == d, l.index(1), l.count(2), (1, 1).count(1)
messages is string, messages[0].role == 'user' and messages[0]['content'] is string
s|trim|upper|lower|length, (s | trim)[0], s.strip()[0].lower() + 'x'
"x" in undefined_name, undefined_name | join, undefined_name | list, undefined_name | upper, undefined_name | first is defined
1 if undefined_name else 2, undefined_name == none, undefined_name or 'fallback'
d.items() | list | length, 'get' in d, d['get'] is callable, d['nope'] is defined
"%s" % none, '%s' % [1, 2], "%s" % (undefined_name,)
[l, l][1][0], {'f': {'g': [5]}}.f.g[0], [{'a': 1}][0].a, ('x', 'y').0
'{"a": 1}' | string | length, [] | string, {} | string
words | map('length') | sum, words | map('replace', 'a', 'z') | join, rows | map(attribute='k') | map('upper') | unique | list
['a', ['b']] | string, [undefined_name] | string, (none, true) | string
123 | string | list, 'a' | list | tojson
""".strip().split("\n")

STATEMENTS = [
    "{% set x = 1 %}{% if x %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}"
    "{{ loop.last }}{{ loop.length }}{{ loop.depth }} {% endfor %}",
    "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}",
    "{% for i in e %}x{% else %}none{% endfor %}|{% for i in undefined_name %}x{% else %}none{% endfor %}",
    "{% for i in l %}{% for j in l %}{{ loop.depth }}{{ i * j }} {% endfor %}{% endfor %}",
    "{% for i in range(10) if i % 2 %}{{ i }}{% if loop.last %}.{% else %},{% endif %}{% endfor %}",
    "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for c in 'añ世' %}[{{ c }}]{% endfor %}",
    "{% for i in [1, 2, 3, 4] %}{{ loop.cycle('a', 'b', 'c') }}{% if loop.changed(i // 2) %}!{% endif %}{% endfor %}",
    "{% for x in none %}{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, %}{{ c }}",
    "{% set a, b = [1] %}",
    "{% set ns = namespace(x=0, l=[]) %}{% for i in l %}{% set ns.x = ns.x + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.x }} {{ ns.l }}",
    "{% set ns = 5 %}{% set ns.x = 1 %}",
    "{% set d2 = {} %}{% set d2.x = 1 %}",
    "{% set x %}  a {{ n }} b  {% endset %}[{{ x }}]{% set y | trim | upper %} q {% endset %}[{{ y }}]",
    "{% macro m(a, b=2, c=a) %}({{ a }},{{ b }},{{ c }}){% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, k=3) }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{{ n }}{% endcall %}",
    "{% macro m() %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(v) m() %}[{{ v }}]{% endcall %}",
    "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro m() %}{{ late }}{% endmacro %}{% set late = 'now' %}{{ m() }}",
    "{% set v = 1 %}{% macro m() %}{% set v = 2 %}{{ v }}{% endmacro %}{{ m() }}{{ v }}",
    "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro m() %}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}",
    "{% filter upper %}a{{ s }}b{% endfilter %}|{% filter trim | replace('a', 'b') %} aa {% endfilter %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% generation %}x{% set g = 1 %}{{ g }}{% endgeneration %}{{ g is defined }}",
    "{% if false %}a{% elif n == 7 %}b{% else %}c{% endif %}{% if n > 100 %}{% else %}d{% endif %}",
    "{% raw %}{{ x }}{% set %}{% endraw %}{%- raw -%}  y  {%- endraw -%}  z",
    "{# a {{ comment }} #}x{#- b -#} y",
    "{{ '{{' }}{{ '}}' }}{{ {'a': {'b': 1}}['a'] }}{{ {}}}",
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "a\n  {%- if true -%}\n  b\n  {%- endif %}\n\nc\n\n",
    "  {% set x = 1 %}  \n  {{ x }}  \n",
    "{{ 1 }}\n{{ 2 }}\n",
    "\n\n{% set a = 1 %}\n\n{{ a }}",
    "x {%+ if true %} y {% endif +%}\n z",
    "{% if true %}\r\nwindows\r\n{% endif %}\r\n",
    "{%set x=1%}{{x}}{%if x%}y{%endif%}",
    "{{ n }}{{ undefined_name }}{{ none }}{{ t }}{{ f }}{{ l }}",
    "{% set _ = l %}{{ _ }}{% set loop = 5 %}{{ loop }}",
    "{% for m in messages %}{{ m.role }}{{ '' if loop.last else ',' }}{% endfor %}",
    "{% for m in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}{{ index }}{{ m.role }}{% endfor %}",
    "{{ messages.0.role }}{{ messages[0]['content'].split('\\n')[1] }}",
    "{% set x = l | sort | first if l else none %}{{ x }}",
    "{% set parts = [] %}{% for w in words %}{% set parts = parts + [w] %}{% endfor %}{{ parts }}",
    "{% set g = words | map('upper') %}{{ g | list }}{{ g | list }}",
    "{% set g = words | map('upper') %}{{ g | first }}{{ g | join }}",
    "{% if messages[0].role == 'system' %}a{% endif %}{% if n is defined and n %}b{% endif %}",
    "{{ words | map(attribute=0) | list }}{{ [[1, 2], [3, 4]] | map(attribute=1) | list }}{{ [{'a': {'b': 5}}] | map(attribute='a.b') | list }}",
    "{% unknown %}",
    "{% if %}{% endif %}",
    "{% if true %}",
    "{% for %}{% endfor %}",
    "{{ }}",
    "{{ 1 + }}",
    "{{ (1 }}",
    "{{ 'abc }}",
    "{% endif %}",
    "{% break %}",
    "{{ a b }}",
    "{{ f(a=1, 2) }}",
    "{# open",
    "{% raw %} open",
    "{{ x.1.y }}",
    "{{ {'a' 1} }}",
]


def render(env, source, variables):
    try:
        return {"output": env.from_string(source).render(**variables)}
    except Exception as error:
        return {"error": True, "why": f"{type(error).__name__}: {error}"[:120]}


def main():
    env = environment()
    entries = []
    for path in sorted((DATA / "templates").glob("*.jinja")):
        source = path.read_text()
        for name, conversation in CONVERSATIONS.items():
            variables = {"tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>",
                         "eos_token": "</s>", **conversation}
            entries.append({"template": path.name, "conversation": name, **render(env, source, variables)})
    snippets = []
    # One expression an entry, or several with commas between, so that one that raises hides no other.
    for source in ["{{ (" + line + ") }}" for line in EXPRESSIONS] + STATEMENTS:
        snippets.append({"source": source, **render(env, source, VARIABLES)})
    result = {"now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()), "conversations": CONVERSATIONS,
              "variables": VARIABLES, "templates": entries, "snippets": snippets}
    lines = []
    for key, value in result.items():
        if isinstance(value, list):
            inner = ",\n".join(json.dumps(entry) for entry in value)
            lines.append(f'"{key}": [\n{inner}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    (DATA / "chat_expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    errors = [entry for entry in snippets + entries if "error" in entry]
    print(len(entries), "renderings,", len(snippets), "snippets;", len(errors), "raise")
    for entry in errors:
        print("  ", entry.get("source", entry.get("template")), "→", entry["why"])


main()
