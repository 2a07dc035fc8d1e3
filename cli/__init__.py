"""The command line: parse, call one library function, print. One file a command."""

if __name__ != "actcache.cli":
    raise ImportError("import actcache.cli: bare `cli` would load a second copy of it")
