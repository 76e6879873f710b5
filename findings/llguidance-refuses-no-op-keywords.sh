#!/usr/bin/env bash
# llguidance 1.9.1 refuses a JSON schema for a keyword that constrains nothing.
#
# Seen: `uniqueItems: false` is JSON Schema's default and allows every array, and schema generators
# write it out. llguidance reports it as unimplemented, with the same message as for `true`, and
# compiles no grammar; without the keyword the same schema compiles. Whoever passes users' schemas
# on has to take no-op keywords out first.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "llguidance==1.9.1"
"$work/venv/bin/python" - <<'PY'
import json

from llguidance import LLMatcher

plain = {"type": "array", "items": {"type": "integer"}}
said = {}
for unique in (None, False, True):
    schema = plain if unique is None else {**plain, "uniqueItems": unique}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    said[unique] = LLMatcher.validate_grammar(grammar)
    print(f"uniqueItems {unique}: {said[unique] or 'accepted'}")
refused = all("uniqueItems" in said[unique] for unique in (False, True))
raise SystemExit(not (said[None] == "" and refused))
PY
