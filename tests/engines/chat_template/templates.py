"""Chat templates of our own, with the features that families of models use, and single features."""

from __future__ import annotations

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instructions = "" %}
{%- endif %}
{{- "<h>system</h>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " ~ tools|length }}
{%- endif %}
{{- "Date: " + date_string + "\\n" + instructions + eos_token }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {{- raise_exception("no tool calls here") }}
    {%- endif %}
    {{- '<h>' + message['role'] + '</h>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<h>assistant</h>\\n\\n' }}
{%- endif %}
"""

QWEN2 = """{%- if tools %}
    {{- 'Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{%- elif messages[0].role != 'system' %}
    {{- '<im>system\\nHelp.</im>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<im>' + message.role + '\\n' + message.content + '</im>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<im>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}{{- call | tojson(indent=2) }}{%- endfor %}
        {{- '</im>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<im>user' }}
        {%- endif %}
        {{- '\\n<result>' ~ message.content ~ '</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '</im>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<im>assistant\\n' }}{%- endif %}
"""

QWEN3 = """{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and message.content is string
        and not (message.content.startswith('<result>')
        and message.content.endswith('</result>')) %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thoughts)) %}
            {{- '<im>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- else %}
            {{- '<im>assistant\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') + '</im>\\n' }}
    {%- else %}
        {{- '<im>' + message.role + '\\n' + content + '</im>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<im>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in turns if message.role in ["user", "assistant"] %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system is defined %}
            {{- "[I] " + system + "\\n\\n" + message["content"] + "[/I]" }}
        {%- else %}
            {{- "[I] " + message["content"] + "[/I]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("unknown role: " + message["role"]) }}
    {%- endif %}
{%- endfor %}
{{- asked|length }}
"""

SMOLLM3 = """{%- if not xml_tools -%}{%- set xml_tools = [] -%}{%- endif -%}
{%- set mode = "/no_think" if "/no_think" in messages[0].content else "/think" -%}
{{- "<im>system\\n" -}}
{{- "Date: " -}}{%- set today = strftime_now("%d %B %Y") -%}{{- today ~ "\\n" -}}
{%- if messages[0].role == "system" -%}
    {%- set text = messages[0].content.replace("/no_think", "").replace("/think", "").rstrip() -%}
    {{- text + "\\n" -}}
{%- endif -%}
{{- "Mode: " + mode + "</im>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "assistant" -%}
        {% generation %}
        {%- if mode == "/think" -%}
            {{- "<im>assistant\\n" + content.lstrip("\\n") + "</im>\\n" -}}
        {%- else -%}
            {{- "<im>assistant\\n" + "<think></think>\\n" + content.lstrip("\\n") + "</im>\\n" -}}
        {%- endif -%}
        {% endgeneration %}
    {%- elif message.role != "system" -%}
        {{- "<im>" + message.role + "\\n" + content + "</im>\\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<im>assistant\\n" }}{%- endif -%}
"""

GRANITE = """{%- if messages[0]['role'] == 'system' %}
    {%- set prefix = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set prefix = "Today's Date: " + strftime_now('%B %d, %Y') + "." %}
    {%- if tools and documents %}{%- set prefix = prefix + " Use both." %}
    {%- elif documents %}{%- set prefix = prefix + " Use the documents." %}{%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<r>system</r>' + prefix + '<end>\\n' }}
{%- if documents %}
    {%- for document in documents %}
        {{- 'Document ' + loop.index | string + '\\n' + document['text'] }}
        {%- if not loop.last %}{{- '\\n\\n' }}{% endif %}
    {%- endfor %}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<r>' + message['role'] + '</r>' + message['content'] + '<end>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<r>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '</r>' }}
    {%- endif %}
{%- endfor %}
"""

PHI = """{% for message in messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}
{% if loop.index > 12 %}{% break %}{% endif %}
{{ '<|' + message['role'] + '|>' }}
  {% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
{{ message['tools'] }}{% endif %}
{{ message['content'] + '<|end|>' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
"""

HERMES = """{%- macro type_of(schema) -%}
    {%- set names = {"string": "str", "number": "float", "array": "list"} -%}
    {%- if schema is string -%}{{- names.get(schema, "Any") -}}
    {%- elif schema is iterable and schema is not mapping -%}
        {%- set inner = [] -%}
        {%- for part in schema -%}
            {{- type_of(part) -}}{%- if not loop.last -%}|{%- endif -%}
        {%- endfor -%}
    {%- elif schema.type == "array" -%}list[{{- type_of(schema.of) -}}]
    {%- else -%}{{- schema | tojson(separators=(",", ":"), sort_keys=true) -}}{%- endif -%}
{%- endmacro %}
{%- macro wrap(message) %}<im>{{ message.role }}
{{ caller("> ") }}</im>
{% endmacro %}
{{- bos_token }}
{{- type_of("string") }} {{ type_of({"type": "array", "of": ["number", "x"]}) }}
{{- type_of(dict(b=1, a=[true, none, "<&é>"])) }}
{%- for key, value in messages[0] | items %}{{ key }}={{ value | string | upper }};{% endfor %}
{%- for role, group in messages | groupby("role") %}{{ role }}:{{ group | length }} {% endfor %}
{%- for message in messages | rejectattr("role", "equalto", "tool") %}
    {%- call(mark) wrap(message) %}{{ mark }}{{ message.content }}{% endcall %}
{%- endfor %}
{{- messages | map(attribute="content") | map("length") | sum }}
{{- "%s of %d" | format(messages[0].role, messages | length) }}
{%- if add_generation_prompt %}{{ "<im>assistant\\n" }}{% endif %}
"""

TEMPLATES = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "smollm3": SMOLLM3,
    "granite": GRANITE,
    "phi": PHI,
    "hermes": HERMES,
}

FEATURES = [
    "{% set a = dict(x=1) %}{{ a.x }}{{ dict.fromkeys([1, 2]) }}{{ dict is callable }}",
    "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.b is defined }}",
    "{% set n = namespace(_a=1) %}",
    "{% set n = namespace() %}{% set n._a = 1 %}",
    "{% generation %}{% set a = 1 %}{% endgeneration %}{{ a is defined }}",
    "{% for i in range(3) %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% generation %}{% break %}{% endgeneration %}",
    "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ nothing is defined }}",
    "{{ unk_token is defined }}[{{ pad_token }}]{{ messages | tojson(indent=4) }}",
    "{{ {'b': 'é<', 'a': [1, 2.5, none, true]} | tojson(true, none, (',', ':'), true) }}",
    "{{ 'x' | tojson | upper }}{{ '<b>' | e }}{{ 3 | round }}{{ [3, 1] | sort | join('-') }}",
    "{% autoescape true %}{{ '<' }}{{ messages[0].content }}{% endautoescape %}<",
    "{% filter upper %}abc{{ messages[0].content }}{% endfilter %}",
    "{% set x %}a{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ x * 2 }}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{% for i in range(9) if i is odd %}{{ i }}{% else %}none{% endfor %}{{ range(3) | list }}",
    "{{ 'a,b'.split(',') | last }}{{ '%05.1f|%-4s|' % (2.25, 'x') }}"
    "{{ '{:>4}|{!r}'.format(1, 'a') }}",
    "{{ 'abcabc'.replace('b', '') }}{{ ', '.join(['x', 'y']) }}"
    "{{ 'a'.center(5, '*') }}{{ 7 // 2 ** 2 % 5 }}",
    "{{ messages[0]['content'][::-1] }}{{ messages[-1].role ~ 1 ~ none }}{{ 1 < 2 < 3 }}",
    "{{ [1, 2] + [3] }}{{ (1, 2) * 2 }}"
    "{{ 'l' in 'hello' and 'x' not in {'y': 1} }}{{ 3 in range(9) }}",
    "{{ 1 / 0 }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__ }}",
    "{{ missing.attribute }}",
    "{% set l = [1, 2, 3, 4, 5] %}{{ l | batch(2, 0) | list }}"
    "{{ l | slice(2) | map('first') | list }}",
    "{{ {'a': 2, 'b': 1} | dictsort(by='value') }}"
    "{{ [1, 1, 2] | unique | list }}{{ 5 | default(1) }}",
    "{{ messages | selectattr('role', 'in', ['user']) | map(attribute='role') | first }}"
    "{{ 2 | int + 1 }}",
    "a\r\nb\r\n{{ 1 }}\r\n",
    "  {% if true %}  \n x\n  {% endif %}\n{# gone #}\ny",
]
