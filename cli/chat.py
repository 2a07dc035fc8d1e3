"""Talk to a steered model in the terminal: answers appear as they are written.

FILE is a steering that was saved, or GEN, what steer left, for the steering that was chosen there.
Each line is a message; /strength 0.5, /off and /on change how the next answers are steered,
/compare answers the last message again without steering, /reset starts over, /quit ends.

What was written stays as it was steered. Without a chat template each message stands alone.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from actcache.analysis.generation.config import SteerConfig
from actcache.build.config import BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.options import Group, add_settings_of
from actcache.cli.terminal.text import printable
from actcache.errors import ActcacheError

EXAMPLE = "actcache chat texts --max-new 100"

COMMANDS = "/strength NUMBER, /off, /on, /compare, /reset, /quit"

if TYPE_CHECKING:
    from actcache.analysis.generation.run.conversation import Conversation
    from actcache.analysis.generation.run.sources import ModelSource
    from actcache.engine.model import LanguageModel
    from actcache.steering.steering import AnySteering


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("file", metavar="FILE|GEN", help="a steering, or what steer left")
    add_settings_of(command, SteerConfig, "max_new", "temperature", "seed", "end")
    add_model_options(command)


def add_model_options(group: Group) -> None:
    """Add where the model of a steering is, and how it is asked."""
    group.add_argument("--model", help="where the model is now, if it was moved or FILE names none")
    add_settings_of(group, BuildConfig, "dtype", "device", "device_map", "trust_remote_code")
    for name, help in (
        ("template", "chat template for a FILE: auto, the tokenizer's; none; or a Jinja file"),
        ("system", "system message for a FILE"),
    ):
        group.add_argument(f"--{name}", default="auto" if name == "template" else None, help=help)


def run(args: argparse.Namespace) -> None:
    """Load the steering and its model, then answer each line of stdin."""
    from actcache.analysis.generation.run.sources import open_steering, steering_source
    from actcache.prompts.render import Rendering

    steering = open_steering(args.file)
    source = steering_source(
        steering.parts[0].source,
        name=args.model,
        dtype=args.dtype,
        rendering=Rendering(template=args.template, system=args.system),
        trust_remote_code=args.trust_remote_code,
    )
    end_tokens = source.end_tokens(args.end)
    chat = Chat(
        steering,
        source,
        source.load(device=args.device, device_map=args.device_map),
        settings={
            "end_tokens": end_tokens,
            "max_new": args.max_new,
            "temperature": args.temperature,
            "seed": args.seed,
        },
        write=_silent if args.json else _write,
    )
    if sys.stdin.isatty():
        console.say(f"{source.name}: {chat.state}. Commands: {COMMANDS}")
    for line in _lines():
        if not chat.take(line):
            break
    if args.json:
        console.print_json(chat.turns)


class Chat:
    """A conversation, and the commands that steer it.

    Args:
        steering: at the strength that it begins with.
        source: renders messages.
        model: its weights.
        settings: of `Conversation`.
        write: shows a piece of an answer.
    """

    def __init__(
        self,
        steering: "AnySteering",
        source: "ModelSource",
        model: "LanguageModel",
        *,
        settings: dict[str, Any],
        write: Callable[[str], object],
    ):
        self._steering, self._source, self._model = steering, source, model
        self._settings, self._write = settings, write
        self._on = True
        self._conversation: Conversation | None = None
        self.turns: list[dict[str, Any]] = []

    @property
    def state(self) -> str:
        """How the next answer is steered, in words."""
        strengths = dict.fromkeys(f"{part.strength:g}" for part in self._steering.parts)
        return f"strength {', '.join(strengths)}" if self._on else "not steered"

    def take(self, line: str) -> bool:
        """Take a line: a message, or a command; False where the chat is over."""
        line = line.strip()
        word, _, argument = line.partition(" ")
        if word == "/quit":
            return False
        try:
            if word.startswith("/"):
                self._command(word, argument.strip())
            elif line:
                self._answer(line)
        except ActcacheError as error:  # the chat goes on
            console.say(str(error))
        return True

    def _command(self, word: str, argument: str) -> None:
        if word == "/compare":
            self._compare()
            return
        if word == "/strength" and argument:
            try:
                self._steering, self._on = self._steering.at(float(argument)), True
            except ValueError:
                raise ActcacheError(
                    f"the strength is '{argument}', expected a number. For example /strength 0.5"
                ) from None
        elif word in ("/on", "/off"):
            self._on = word == "/on"
        elif word == "/reset":
            self._conversation = None
        elif word != "/strength":
            raise ActcacheError(f"'{word}' is no command, expected one of {COMMANDS}.")
        console.say(self.state)

    def _answer(self, text: str) -> None:
        from actcache.analysis.generation.run.conversation import Conversation
        from actcache.analysis.generation.run.turns import first_message, next_message

        renderer = self._source.renderer
        if self._conversation is None or renderer.template is None:
            self._conversation = Conversation(self._model, **self._settings)
            message = first_message(renderer, text)
        else:
            message = next_message(renderer, self._source.tokenizer, text)
        conversation, steering = self._conversation, self._steering if self._on else None
        self._shown(text, lambda show: conversation.answer(message, steering, show))

    def _compare(self) -> None:
        conversation = self._conversation
        if conversation is None:
            raise ActcacheError("there is no message to answer again. Write one first.")
        console.say("without steering:")
        self._shown(None, lambda show: conversation.answer_again(None, show))

    def _shown(self, message: str | None, write: Callable[[Callable[[int], None]], None]) -> None:
        """Show an answer while it is written; whole characters only."""
        tokens: list[int] = []
        shown = ""

        def show(token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = self._source.tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                self._write(text[len(shown) :])
                shown = text

        try:
            write(show)
        finally:
            self._write("\n")
        if message is None:
            self.turns[-1]["without steering"] = shown
        else:
            self.turns.append({"message": message, "answer": shown, "steering": self.state})


def _lines() -> Iterator[str]:
    """Read stdin line by line; a terminal shows where to write."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _write(text: str) -> None:
    print(printable(text), end="", flush=True)


def _silent(_text: str) -> None:
    pass
