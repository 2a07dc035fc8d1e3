"""`python -m actcache`."""

import sys

from actcache.cli.main import main

sys.exit(main())
