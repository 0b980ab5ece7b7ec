#!/usr/bin/env python3
"""Writes templates.json: chat templates made of what models' templates are made of, and what jinja2,
set up as in transformers (utils/chat_template_utils.py), makes of them. Needs jinja2."""
import json
from pathlib import Path
import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.If(jinja2.nodes.Const(True), body, [], [], lineno=line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception

LLAMA3 = """{% set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
MISTRAL3 = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""
QWEN2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
BLOCKS = """  {% if messages %}
  {# a comment #}
a
    {% for m in messages %}
  {{ m.role }}
    {%+ if loop.last %}last{% endif %}

    {% endfor %}
  {% endif %}
b
"""
GENERATION = """{% for m in messages %}
{% if m.role == 'assistant' %}
{%- generation -%}
  {{ m.content }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ m.content }}
{% endif %}
{% endfor %}
{% generation %}x{%- endgeneration %}
"""
MACROS = """{%- macro turn(role, text='none', upper=false) -%}
    [{{ role }}: {{ text | upper if upper else text }}]
{%- endmacro -%}
{% for m in messages %}{{ turn(m.role, m.content, upper=loop.first) }}{% endfor %}{{ turn('x') }}
{%- set block %}
held {{ messages | length }}
{% endset %}{{ block | trim }}"""
JSON = """{{ messages | tojson }}
{{ messages | tojson(indent=2) }}
{{ {'a': [1, 2.5, true, none, 'é"<&>\\'\\n'], 'b': {}, 'c': [], 'd': [[]]} | tojson }}
{{ {'a': [1, {}], 'b': {'c': []}} | tojson(indent=4) }}
{{ {'a': ['é😀', 1]} | tojson(ensure_ascii=true) }}
{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}"""
METHODS = """{%- set s = messages[0].content -%}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ s.upper() }}|{{ s.lower() }}|{{ s.title() }}|{{ s.capitalize() }}
{{ s.replace('l', 'L') }}|{{ s.split(' ') }}|{{ s.split() | length }}|{{ s.find('o') }}|{{ s.count('l') }}
{{ s.startswith(' ') }}|{{ s.endswith('x') }}|{{ s[2:5] }}|{{ s[-3:] }}|{{ s[::-1] }}|{{ s | length }}
{{ messages[0].get('role') }}|{{ messages[0].get('nothing') }}|{{ messages[0].get('nothing', 'd') }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | trim }};{% endfor %}
{% for key in messages[0] %}{{ key }},{% endfor %}{% for k, v in messages[0] | items %}{{ k }}:{{ v }}{% endfor %}
{{ ', '.join(['a', 'b']) }}|{{ ['a', 'b'] | join('-') }}|{{ messages | map(attribute='role') | list | join('/') }}
{{ 'a' in s }}|{{ 'role' in messages[0] }}|{{ 'x' not in messages[0] }}"""
TESTS = """{%- set all = {'s': 'x', 'l': [1], 'm': {'a': 1}, 'i': 3, 'f': 1.5, 'b': true, 'n': none} -%}
{% for name, v in all.items() %}
{{ name }} {{ v is string }} {{ v is mapping }} {{ v is iterable }} {{ v is sequence }} {{ v is number }} {{ v is none }} {{ v is boolean }} {{ v is true }} {{ v is defined }}
{% endfor %}
{{ nothing is defined }} {{ nothing is undefined }} [{{ nothing }}] {{ nothing is none }} {{ nothing | default('d') }} {{ 'y' if nothing else 'n' }} {% for x in nothing %}{{ x }}{% else %}empty{% endfor %}

{{ tools is none }} {{ tools is defined }} {{ True and not False }} {{ None }} {{ true }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 1.0 }} {{ 'a' ~ 1 }} {{ [1, 'a', none, true] }}"""
LOOPS = """{%- for m in messages -%}
{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} {{ loop.revindex0 }}{% if loop.previtem is defined %} after {{ loop.previtem.role }}{% endif %}{% if loop.nextitem is defined %} before {{ loop.nextitem.role }}{% endif %}{% if m.role == 'assistant' %}{% continue %}{% endif %};
{% if loop.index == 3 %}{% break %}{% endif %}
{%- endfor %}
{%- for m in messages if m.role == 'user' %}{{ m.content }},{% endfor %}
{%- set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{% endfor %}{{ x }}
{%- for i in range(4, 0, -2) %}{{ i }}{% endfor %}{{ loop is defined }}"""

CHAT = [("user", "Hi"), ("assistant", " Hello! "), ("user", "How are you?\n")]
SYSTEM = [("system", " Be brief. "), *CHAT]
THINK = [*CHAT, ("assistant", "<think>\nhm\n</think>\n\nFine."), ("user", "é 😀"), ("assistant", "<think>a</think>b")]
CASES = [(name, source, chat) for name, source in [
    ("llama3", LLAMA3), ("llama31", LLAMA31), ("mistral", MISTRAL), ("mistral3", MISTRAL3), ("qwen2", QWEN2),
    ("qwen3", QWEN3), ("blocks", BLOCKS), ("generation", GENERATION), ("macros", MACROS), ("json", JSON),
    ("loops", LOOPS), ("tests", TESTS)] for chat in (CHAT, SYSTEM, THINK)]
CASES.append(("methods", METHODS, [("user", "  hello wORLD foo  ")]))
CASES.append(("mistral", MISTRAL, [("user", "a"), ("user", "b")]))

out = []
for name, source, chat in CASES:
    for prompt in (False, True):
        messages = [{"role": r, "content": c} for r, c in chat]
        case = dict(name=name, source=source, messages=messages, add_generation_prompt=prompt)
        try:
            case["expected"] = env.from_string(source).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                bos_token="<s>", eos_token="</s>")
        except jinja2.exceptions.TemplateError as error:
            case["raises"] = str(error)
        out.append(case)
text = json.dumps(out, ensure_ascii=False, indent=1)
(Path(__file__).parent / "templates.json").write_text(text + "\n")
