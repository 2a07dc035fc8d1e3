"""One question a script, each answered by a ratio measured in turns. See README.md."""
