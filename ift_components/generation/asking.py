"""Asking a language model about every caption, each once: replies are appended to a file as they come."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ift_components.chat import ChatClient, Request
from ift_components.data.splitting import split_name
from ift_components.errors import ConfigError, DataError, UserError
from ift_components.files import locked

_IN_A_ROW = 20  # requests without a reply, one after the other, after which the server is given up


@dataclass
class ChatServer:
    """A server that is asked, and how. Text alone is sent, no image.

    Attributes:
        base_url: up to and including `/v1`; ollama's, vLLM's, SGLang's or llama.cpp's own, or a hosted one.
        model: the name the server knows the model by; null asks nobody and works on the replies that are there.
        temperature: 0 is greedy.
        top_p: nucleus of sampled tokens.
        max_tokens: longest reply.
        seed: sent with every request, plus a hash of the image; the server decides what it does with it.
        concurrency: requests at the same time.
        timeout: seconds that one attempt may take in all.
        retries: further attempts after the first.
        api_key_env: environment variable that holds the key.
    """

    base_url: str = "http://127.0.0.1:11434/v1"
    model: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    api_key_env: str | None = None

    def connect(self, where: str, *, private: str | None, allow: str) -> ChatClient:
        """Return the client.

        Args:
            where: the config key of this server, for messages.
            private: what may not leave this machine; None lets everything.
            allow: the config key that lets it leave nevertheless, for the message.

        Raises:
            ConfigError: for values that cannot be, or a remote server for what is private.
        """
        client = ChatClient(
            self.base_url,
            str(self.model),
            where=where,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
            api_key_env=self.api_key_env,
        )
        if private is not None and not client.is_local:
            raise ConfigError(
                f"{where}.base_url: {client.address} is not on this machine, but {private}; use a server on "
                f"localhost, or set {allow}=true if the data's terms allow it"
            )
        return client


@dataclass
class ServerOptions(ChatServer):
    """The server that writes, and how it is asked. A text-only model does: images are not sent.

    Attributes:
        allow_remote: let the captions of a private folder leave this machine.
    """

    allow_remote: bool = False

    def client(self, *, private: bool) -> ChatClient:
        """Return the client.

        Args:
            private: whether the captions may not leave this machine.

        Raises:
            ConfigError: for values that cannot be, or a remote server for private captions.
        """
        forbidden = "the captions are private" if private and not self.allow_remote else None
        return self.connect("server", private=forbidden, allow="server.allow_remote")


@dataclass(frozen=True)
class Task:
    """One caption or answer to ask about.

    Attributes:
        image_id: the image, or whatever else tells this task from others with the same prompt.
        prompt: what the model is asked.
        facts: what is kept beside the reply, for people who read the file.
    """

    image_id: str
    prompt: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredReply:
    """A reply as it is kept.

    Attributes:
        image_id: the task's.
        text: the reply; None if the server refused.
        split: the split that came with it.
        refusal: why there is no text.
    """

    image_id: str
    text: str | None
    split: str | None = None
    refusal: str | None = None


class ReplyFile:
    """Replies of a model, one JSON object a line, only ever appended to.

    Each is filed under a hash of everything that decides it: image, prompt, model and sampling. A line that a crash cut off
    at the end of the file is dropped.

    Args:
        path: the file.
        server: the model and its sampling.
        template: name of the template, kept with each reply for people who read the file.
        what: what is asked about, in the plural, for messages.
        private: whether the file is for its owner alone.
    """

    def __init__(
        self, path: Path, server: ChatServer, template: str, *, what: str = "captions", private: bool = False
    ) -> None:
        self.path, self.server, self.template, self._what, self.private = path, server, template, what, private

    def key(self, task: Task) -> str:
        """Return what a task's reply is filed under."""
        server = self.server
        state = [
            task.image_id,
            task.prompt,
            server.model,
            server.temperature,
            server.top_p,
            server.max_tokens,
            server.seed,
        ]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]

    def read(self) -> dict[str, StoredReply]:
        """Return the replies by key.

        Raises:
            DataError: for a line that is none of a reply file, unless it is the last and cut off.
        """
        replies: dict[str, StoredReply] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        for number, line in enumerate(lines):
            if not line:
                continue
            try:
                row = json.loads(line)
                replies[row["key"]] = StoredReply(row["image_id"], row["reply"], refusal=row.get("refusal"))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1:
                    break  # no line break after it: it was being written when the process ended
                raise DataError(f"{self.path} line {number + 1} holds no reply; mend or remove the line") from error
        return replies

    def _cut_off_end(self) -> None:
        """Remove a last line without a line break, so that the next one does not run on from it."""
        if not self.path.is_file():
            return
        with self.path.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)

    def ask(self, tasks: Iterable[Task], client: ChatClient) -> None:
        """Ask about each task that has no reply yet and append the replies.

        Raises:
            UserError: if the server cannot be used, some tasks still have no reply, or the file cannot be written, such as on
                a full disk; what was replied is kept.
        """
        with locked(self.path, f"another process is writing {self.path}; wait for it"):
            self._cut_off_end()
            stored = self.read()
            missing = [task for task in tasks if self.key(task) not in stored]
            if missing:
                self._ask(missing, client)

    def _ask(self, missing: list[Task], client: ChatClient) -> None:
        failed = in_a_row = 0
        trouble = ""
        requests = (Request(task, lambda task=task: self._body(task)) for task in missing)  # type: ignore[misc]
        with (
            self._opened() as file,
            closing(client.ask(requests)) as replies,
            tqdm(total=len(missing), desc=client.model, unit="reply") as bar,
        ):
            for task, reply in replies:
                bar.update()
                if reply.passing:
                    failed, in_a_row, trouble = failed + 1, in_a_row + 1, reply.refusal or ""
                    if in_a_row == _IN_A_ROW:
                        break
                    continue
                in_a_row = 0
                row = {
                    "key": self.key(task), "image_id": task.image_id, "template": self.template, "model": client.model,
                    **task.facts, "reply": reply.text, "refusal": reply.refusal,
                }  # fmt: skip
                text = json.dumps(row, ensure_ascii=False)
                self._append(file, text.encode("utf-8", "backslashreplace") + b"\n")
        if failed:
            raise UserError(
                f"{client.where}.base_url: {client.address} gave no reply to {failed} of {len(missing)} {self._what} "
                f"({trouble}); the replies until then are kept in {self.path}: run the same command again"
            )

    def _opened(self) -> FileIO:
        try:
            if self.private:
                self.path.touch(mode=0o600)
            # Without a buffer, which closing the file would try to write out once more after the disk was full.
            return self.path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"replies: {self.path} cannot be written: {error.strerror}") from error

    def _append(self, file: FileIO, line: bytes) -> None:
        try:
            while line:
                line = line[file.write(line) :]
        except OSError as error:
            raise UserError(
                f"replies: {self.path} cannot be written: {error.strerror}; the replies until then are kept in it: make room "
                "and run the same command again"
            ) from error

    def _body(self, task: Task) -> dict[str, Any]:
        own = int.from_bytes(hashlib.sha256(task.image_id.encode()).digest()[:4], "big")
        return {
            "messages": [{"role": "user", "content": task.prompt}],
            "temperature": self.server.temperature,
            "top_p": self.server.top_p,
            "max_tokens": self.server.max_tokens,
            "seed": (self.server.seed + own) % 2**31,
        }


@dataclass
class ImportOptions:
    """Replies that were got elsewhere, as a JSON list of objects.

    Attributes:
        path: the file; null for none.
        image_field: names the image by its id in the prepared folder.
        reply_field: holds the reply as the model gave it.
        split_field: holds the split that the replies' authors put the image into; null if there is none.
    """

    path: str | None = None
    image_field: str = "image_id"
    reply_field: str = "reply"
    split_field: str | None = None

    def read(self) -> list[StoredReply]:
        """Return the replies in the file's order.

        Raises:
            DataError: if the file cannot be read, or an object lacks a field.
        """
        if self.path is None:
            return []
        path = Path(self.path).expanduser()
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"imported.path: {path} cannot be read as JSON: {error}") from error
        if not isinstance(rows, list):
            raise DataError(f"imported.path: {path} is no list of objects")
        return [self._reply(row, f"imported.path: {path.name} entry {number + 1}") for number, row in enumerate(rows)]

    def _reply(self, row: Any, where: str) -> StoredReply:
        fields = [self.image_field, self.reply_field, *([self.split_field] if self.split_field else [])]
        if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
            raise DataError(f"{where} needs the fields {', '.join(fields)} as text")
        split = split_name(row[self.split_field]) if self.split_field else None
        return StoredReply(row[self.image_field], row[self.reply_field], split)
