"""A local service that speaks OpenAI's protocol for chat, and misbehaves on request."""

import json

from tests.support.embedding_server import EmbeddingServer, Handler


class _ChatHandler(Handler):
    def texts_of(self, body):
        return [message["content"] for message in body["messages"]]

    def answer(self, texts, reply="ok", width=None):
        content: object = reply.removeprefix("say ")
        if reply == "ok":  # the number that the text ends with
            content = texts[-1].split()[-1]
        message = {
            "role": "assistant",
            "content": {"silence": None, "list": [1]}.get(reply, content),
        }
        body = {
            "object": "chat.completion",
            "choices": [] if reply == "no choice" else [{"index": 0, "message": message}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }
        self.send(200, json.dumps(body).encode())


class ChatServer(EmbeddingServer):
    """A judge on this machine. It answers with the last word of the question, or with what a reply
    `say ...` says; the other replies are those of `EmbeddingServer`."""

    handler = _ChatHandler
