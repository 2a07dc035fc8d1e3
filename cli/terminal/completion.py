"""Print a script that completes commands, flags and their words in a shell.

The script is made from the flags of this version and runs nothing of it, so that the tab key
answers at once. For bash: actcache completion bash >> ~/.bashrc; for zsh: the same into ~/.zshrc;
for fish: actcache completion fish > ~/.config/fish/completions/actcache.fish
"""

import argparse
import shlex

from actcache.cli.terminal import console

EXAMPLE = "actcache completion bash"

SHELLS = ("bash", "zsh", "fish")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    script = completion(args.top, args.shell)
    if args.json:
        console.print_json({"shell": args.shell, "script": script})
    else:
        print(script, end="")


def completion(top: argparse.ArgumentParser, shell: str) -> str:
    """Write the script of one shell for a parser with commands."""
    [choices] = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    commands: dict[str, argparse.ArgumentParser] = choices.choices
    if shell == "fish":
        about = {action.dest: action.help or "" for action in choices._choices_actions}
        return _fish(commands, about)
    return ("autoload -U +X bashcompinit && bashcompinit\n" * (shell == "zsh")) + _bash(commands)


def _bash(commands: dict[str, argparse.ArgumentParser]) -> str:
    words, flags = [], []
    for name, command in commands.items():
        options = [a for a in command._actions if a.option_strings]
        every = " ".join(option for action in options for option in action.option_strings)
        flags.append(f"        {name}) words={shlex.quote(every)};;")
        for action in options:
            if action.choices:
                before = "|".join(f'"{name} {option}"' for option in action.option_strings)
                listed = shlex.quote(" ".join(map(str, action.choices)))
                words.append(f"        {before}) words={listed};;")
        listed = " ".join(str(x) for a in command._actions if not a.option_strings
                          for x in a.choices or ())  # fmt: skip
        if listed:
            words.append(f"        {f'{name} {name}'!r}) words={shlex.quote(listed)};;")
    lines = "\n".join
    top = shlex.quote(" ".join([*commands, "--help", "--version"]))
    return f"""_actcache() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    case "${{COMP_WORDS[1]}} $before" in
{lines(words)}
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words={top}
    elif [[ "$current" == -* ]]; then
        words=""
        case "${{COMP_WORDS[1]}}" in
{lines(flags)}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _actcache actcache
"""


def _fish(commands: dict[str, argparse.ArgumentParser], about: dict[str, str]) -> str:
    lines = ["complete -c actcache -n __fish_use_subcommand -f"]
    for name, command in commands.items():
        lines.append(
            f"complete -c actcache -n __fish_use_subcommand -a {name} -d {_quoted(about[name])}"
        )
        seen = f"complete -c actcache -n '__fish_seen_subcommand_from {name}'"
        for action in command._actions:
            listed = _quoted(" ".join(map(str, action.choices or ())))
            if not action.option_strings:
                lines += [f"{seen} -x -a {listed}"] if action.choices else []
                continue
            names = " ".join(
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in action.option_strings
            )
            takes = "" if action.nargs == 0 else f" -x -a {listed}" if action.choices else " -r"
            lines.append(f"{seen} {names}{takes} -d {_quoted(action.help or '')}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text in fish's single quotes, on one line, short."""
    short = " ".join(text.replace("%%", "%").split())
    short = short if len(short) <= 80 else short[:79] + "…"
    return "'" + short.replace("\\", "\\\\").replace("'", "\\'") + "'"
