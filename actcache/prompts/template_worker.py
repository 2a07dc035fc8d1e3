"""Renders chat templates, in a process of its own that `templates` starts, bounds and ends.

It is run as a file: a request is a line of JSON on stdin, an answer a line on stdout.
"""

import contextlib
import json
import sys
from typing import Any

MEMORY = 1 << 30
"""Bytes of address space that a template may take, where the system can bound it."""

CHARACTERS = 10_000_000
"""Of one rendered prompt: no model reads as many."""


def limit_memory() -> None:
    """Bound what this process may take from now on; Windows has no such bound."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # Linux alone
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Render one conversation as transformers does; or say why the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(  # annotated as text
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["special"],
        )
        text = str(rendered[0][0])
    except MemoryError:
        return {"error": "it takes more than a gigabyte of memory", "stopped": "yes"}
    except Exception as error:  # a template is a program: whatever it raises is about the row
        return {"error": str(error)[:500] or type(error).__name__}
    if len(text) > CHARACTERS:
        return {"error": f"it renders over {CHARACTERS:,} characters", "stopped": "yes"}
    return {"text": text}


def main() -> None:
    """Answer requests until stdin is closed."""
    import transformers.utils.chat_template_utils  # noqa: F401  # before memory is bounded

    limit_memory()
    for line in sys.stdin.buffer:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
