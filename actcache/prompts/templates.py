"""Chat templates, which are programs that a checkpoint brings: rendered in a bounded process.

jinja's sandbox keeps a template from files and from Python, but not from looping or from taking
memory without end. So it runs beside us, where it can be stopped at any instruction.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

SECONDS = 10.0
"""How long one prompt may take; a usual template takes a thousandth of a second."""

_SECONDS_TO_START = 120.0  # it imports a part of transformers, on a machine that may be busy
_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateError(Exception):
    """A template refuses a conversation, or takes too long or too much; says which."""

    def __init__(self, reason: str, *, stopped: bool = False):
        super().__init__(reason)
        self.stopped = stopped
        """Whether it was stopped: it would be again, for every row."""


class TemplateProcess:
    """A process that renders chat templates; started when it is first needed."""

    def __init__(self, *, seconds: float = SECONDS):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, str]],
        special: Mapping[str, Any],
    ) -> str:
        """Render a conversation, with what the assistant's turn begins with, as transformers does.

        `special` are the tokenizer's special tokens, which templates may name.

        Raises:
            TemplateError: the template raises, or was stopped.
        """
        request = {"template": template, "messages": messages, "special": special}
        with self._lock:
            answer = self._ask(self._process or self._start(), request, self._seconds)
        if "error" in answer:
            raise TemplateError(answer["error"], stopped="stopped" in answer)
        return answer["text"]

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(  # -P: the folder of the file holds modules of other names
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._process, self._answers = process, queue.SimpleQueue()
        assert process.stdout is not None
        threading.Thread(
            target=_read_lines, args=(process.stdout, self._answers), daemon=True
        ).start()
        weakref.finalize(self, _end, process)
        # Its start is no part of the time of a template.
        self._ask(process, {"template": "", "messages": [], "special": {}}, _SECONDS_TO_START)
        return process

    def _ask(
        self, process: "subprocess.Popen[bytes]", request: Mapping[str, Any], seconds: float
    ) -> dict[str, str]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._process = None
            _end(process)
            raise TemplateError(
                f"it does not end within {seconds:g} s, and was stopped", stopped=True
            ) from None
        except OSError:
            line = b""
        if not line:  # it died, such as of memory
            self._process = None
            _end(process)
            raise TemplateError("it takes too much memory, and was stopped", stopped=True)
        answer: dict[str, str] = json.loads(line)
        return answer


@cache
def shared_process() -> TemplateProcess:
    """The process that all renderers share: starting one takes about a second."""
    return TemplateProcess()


def _read_lines(stream: IO[bytes], answers: "queue.SimpleQueue[bytes]") -> None:
    with stream:
        for line in stream:
            answers.put(line)
    answers.put(b"")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was not yet written goes with it
            process.stdin.close()
    process.wait()
