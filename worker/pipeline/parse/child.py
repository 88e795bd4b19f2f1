"""The process that reads one document: the file on descriptor 0, its pages as JSON on descriptor 1.

Started as a script by sandbox.py, with one argument in JSON. Everything it needs is imported before it
gives up its rights, and it gives them up before it reads the first byte. What it answers is one of
`{"pages": …}`, `{"rejected": [code, message, detail]}`, `{"failed": detail}`, `{"mode": …}`.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Confine this process, then read the document; ends the process."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    sys.path.extend(task["path"])

    import faulthandler
    import importlib

    from worker.pipeline.parse import confine
    from worker.pipeline.text import load_charsets

    result = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not stand in the result
    faulthandler.enable()
    mode = "namespace" if confine.leave_network() else "none"
    confine.end_with_parent(task["parent"])
    confine.set_limits(memory_bytes=task["memory_bytes"], cpu_seconds=task["cpu_seconds"])
    module = importlib.import_module(task["module"])
    load_charsets()
    if confine.close_doors() and mode == "none":
        mode = "seccomp"
    if mode == "none" and not task["allow_unsandboxed"]:
        answer: dict[str, Any] = {"mode": "none"}
    else:
        answer = _read(module, task) if task["mime_type"] else module.probe(mode)
    _send(result, json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))


def _read(module: Any, task: dict[str, Any]) -> dict[str, Any]:
    from worker.errors import Rejected
    from worker.pipeline.parse.draft import Draft, corrupt

    draft = Draft(task["mime_type"], max_pages=task["max_pages"], max_text_bytes=task["max_text_bytes"])
    try:
        with open(0, "rb", closefd=False) as file:
            module.parse(file, draft)
    except Rejected as verdict:
        return {"rejected": [verdict.code, verdict.public_message, verdict.detail]}
    except MemoryError:
        return {"failed": "memory"}
    except (LookupError, ValueError, ArithmeticError, EOFError, RecursionError, *module.ERRORS) as exc:
        # The file says what cannot be: every library has its own words for it.
        damaged = corrupt(_place(exc))
        return {"rejected": [damaged.code, damaged.public_message, damaged.detail]}
    except Exception as exc:  # noqa: BLE001
        return {"failed": _place(exc)}
    draft.note_blank_pages()
    return {"pages": draft.pages, "title": draft.title, "notes": draft.notes}


def _place(exc: BaseException) -> str:
    """Name the exception and the line it comes from; its message could hold text of the document."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"  # noqa: PTH119
    return f"{type(exc).__name__} at {where}"


def _send(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os._exit(0)  # nothing here is worth the time of an orderly end


if __name__ == "__main__":
    main()
