"""Stand-ins for language models: a server on the loopback whose replies follow rules, a writer's and two judges'.

A table on the miniature then needs no model and no network. What such judges grade is how many words two texts share: it
says nothing that ROUGE does not, and shows that the stages around them work.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from ift_components.data.sentences import split_sentences
from ift_components.evaluation.text_metrics import normalise

Reply = str | tuple[int, str]
"""What is answered, or a status and a body."""

_OK = 200
_REFERENCE = re.compile(r"Reference \(right by definition\):\n(.*?)\n\nAnswer", re.DOTALL)
_ANSWERS = re.compile(r"Answer(?: to be judged| A| B):\n(.*?)\n\n", re.DOTALL)
_CAPTION = re.compile(r"\nCaption: (.*?)(?:\nSentences: (.*))?\Z", re.DOTALL)
_SENTENCES = 2  # of the context, that a description takes over
_HIGHEST = 10


class ScriptedServer:
    """An OpenAI-compatible server on the loopback whose replies a function gives; it keeps what it was asked.

    Args:
        answer: takes a request's body and returns the reply.

    Attributes:
        requests: the bodies, in the order in which they came.
        url: the address, up to and including `/v1`.
    """

    def __init__(self, answer: Callable[[Mapping[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        requests, lock = self.requests, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:  # nothing on the terminal
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    requests.append(request)
                reply = answer(request)
                status, text = reply if isinstance(reply, tuple) else (_OK, reply)
                if status == _OK:
                    text = json.dumps({"choices": [{"message": {"content": text}}]})
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def coverage(reference: str, answer: str) -> int:
    """Return a grade, 0 to 10: the share of the reference's different words that stand in the answer."""
    wanted, given = set(normalise(reference).split()), set(normalise(answer).split())
    return round(_HIGHEST * len(wanted & given) / len(wanted)) if wanted else 0


def overlap(reference: str, answer: str) -> int:
    """Return a grade, 0 to 10: Dice's coefficient of the different words of both, which takes off for further words."""
    wanted, given = set(normalise(reference).split()), set(normalise(answer).split())
    return round(_HIGHEST * 2 * len(wanted & given) / (len(wanted) + len(given))) if wanted or given else 0


JUDGES: dict[str, Callable[[str, str], int]] = {"coverage": coverage, "overlap": overlap}
"""The judges, by the name that they are asked for as a model."""


def texts_of(prompt: str) -> tuple[str, list[str]]:
    """Return the reference and the answers, one or two, that a judge's prompt holds."""
    reference = _REFERENCE.search(prompt)
    return (reference[1] if reference else ""), _ANSWERS.findall(prompt)


def judge(prompt: str, grade: Callable[[str, str], int]) -> str:
    """Return the reply of a judge who grades by a rule: a grade, a verdict or a preference, as the prompt asks."""
    reference, answers = texts_of(prompt)
    grades = [grade(reference, answer) for answer in answers]
    if "Better:" in prompt:
        first, second = grades
        return f"Better: {'A' if first > second else 'B' if second > first else 'tie'}"
    if "Verdict:" in prompt:
        return f"Verdict: {'correct' if grades[0] == _HIGHEST else 'incorrect'}"
    return f"Words that agree were counted.\nGrade: {grades[0]}"


def write(prompt: str) -> str:
    """Return the reply of a writer who adds nothing: of caption and context, whole sentences as they stand.

    A detailed description is the caption and the first two sentences of the context. A question that asks for reasoning is
    always the same, and its answer the last two sentences of what is known.
    """
    found = _CAPTION.search(prompt)
    caption, context = (found[1], found[2] or "") if found else ("", "")
    known = [] if context.strip() in ("", "(none)") else split_sentences(context)
    if "Q:" in prompt:
        answer = " ".join([*split_sentences(caption), *known][-_SENTENCES:])
        return f"Q: What follows from what the image shows?\nA: {answer}"
    return " ".join([*split_sentences(caption), *known[:_SENTENCES]])


def answer_as(model: str, prompt: str) -> Reply:
    """Return what the writer (`writer`) or a judge, named by a request's model, says to a prompt."""
    if model == "writer":
        return write(prompt)
    if model in JUDGES:
        return judge(prompt, JUDGES[model])
    return 404, json.dumps({"error": f"no model '{model}' here; known: writer, {', '.join(JUDGES)}"})


def scripted_server() -> ScriptedServer:
    """Return a server of the writer and the judges."""
    return ScriptedServer(lambda request: answer_as(request["model"], request["messages"][0]["content"]))
