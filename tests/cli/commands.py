"""Run commands as a user does."""

from actcache.cli.main import main

WITHOUT_PREDICTORS = ("--stages", "vectors,layers,sweep")
"""The predictors' tests have networks that are small enough to train."""


def build(folder, out, *more, data="pairs"):
    command = ["build", folder / f"{data}.jsonl", "--model", folder / "model", "-o", out, *more]
    return main([str(word) for word in command])


def refused(argv, capsys):
    code = main([str(word) for word in argv])
    message = capsys.readouterr().err
    assert code == 1, message
    assert message.startswith("actcache: ")
    assert message.count("\n") == 1, message
    return message
