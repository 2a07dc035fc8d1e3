"""Talk to a steered model in the terminal: answers appear as they are written.

FILE is a steering that actcache saved, or GEN, what steer left, for the strength that was chosen
there. Each line is a message. Lines that begin with a slash change what comes next:
/strength 0.5, /off, /on, /compare (the last message again, without steering), /reset, /quit.

Tokens that were written stay as they were steered. Without a chat template each message stands
alone.
"""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actcache.analysis.generation.config import SteerConfig
from actcache.build.config import BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_settings_of
from actcache.errors import ActcacheError

EXAMPLE = "actcache chat tidy.safetensors --max-new 100"

COMMANDS = ("/strength", "/off", "/on", "/compare", "/reset", "/quit")

if TYPE_CHECKING:
    from actcache.analysis.generation.conversation import Conversation
    from actcache.steering.steering import AnySteering


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("file", metavar="FILE|GEN", help="a steering, or what steer left")
    add_settings_of(command, SteerConfig, "max_new", "temperature", "seed", "end")
    add_model_options(command)


def add_model_options(command: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add where a steering's model is, and how it is asked."""
    command.add_argument("--model", help="the model, where the file names none or it was moved")
    add_settings_of(command, BuildConfig, "template", "system", "device", "device_map")
    add_settings_of(command, BuildConfig, "dtype", "trust_remote_code")


def run(args: argparse.Namespace) -> None:
    """Load the steering and its model, then answer each line of stdin."""
    from actcache.analysis.generation.sources import open_steering

    steering, source = open_steering(args.file)
    chat = _Chat(steering, *_start(args, source), as_json=args.json)
    try:
        for line in _lines():
            if not chat.take(line.strip()):
                break
    finally:
        if args.json:
            console.print_json(chat.turns)
