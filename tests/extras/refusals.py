"""The HTTP refusals that mean the same through either package: status, headers, the error's class and code."""

from __future__ import annotations

import pytest

from worker.errors import Misconfigured, Rejected, Throttled, Transient, Unavailable
from worker.pipeline.parse.parser import Lost

SUBMITTING = [
    pytest.param(400, Rejected, "parser_refused_file", id="400"),
    pytest.param(401, Misconfigured, "parser_key_refused", id="401"),
    pytest.param(402, Misconfigured, "parser_no_credits", id="402"),
    pytest.param(403, Misconfigured, "parser_key_refused", id="403"),
    pytest.param(404, Misconfigured, "parser_options_refused", id="404"),
    pytest.param(413, Rejected, "parser_refused_file", id="413"),
    pytest.param(422, Misconfigured, "parser_options_refused", id="422"),
    pytest.param(500, Transient, "parser_failed", id="500"),
    pytest.param(502, Unavailable, "parser_unreachable", id="502"),
    pytest.param(503, Unavailable, "parser_unreachable", id="503"),
    pytest.param(504, Unavailable, "parser_unreachable", id="504"),
]
POLLING = [
    pytest.param(400, Transient, "parser_answer_malformed", id="400"),
    pytest.param(401, Misconfigured, "parser_key_refused", id="401"),
    pytest.param(402, Misconfigured, "parser_no_credits", id="402"),
    pytest.param(403, Misconfigured, "parser_key_refused", id="403"),
    pytest.param(404, Lost, "parse_job_unknown", id="404"),
    pytest.param(500, Transient, "parser_failed", id="500"),
    pytest.param(502, Unavailable, "parser_unreachable", id="502"),
    pytest.param(503, Unavailable, "parser_unreachable", id="503"),
    pytest.param(504, Unavailable, "parser_unreachable", id="504"),
]
THROTTLING = [
    pytest.param({}, 30, id="without Retry-After"),
    pytest.param({"retry-after": "7"}, 7, id="seconds"),
    pytest.param({"retry-after": "0.5"}, 0.5, id="half a second"),
    pytest.param({"retry-after": "86400"}, 3600, id="a day, which is bounded"),
    pytest.param({"retry-after": "inf"}, 30, id="no number"),
    pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0, id="a date that is past"),
    pytest.param({"retry-after": "soon"}, 30, id="nonsense"),
]
THROTTLED = Throttled
