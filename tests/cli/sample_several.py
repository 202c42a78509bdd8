"""Runs `unistep sample` with each of the argument lists in the JSON file named; several processes run this together."""

import json
import sys
from pathlib import Path

from unistep.cli.main import main

for arguments in json.loads(Path(sys.argv[1]).read_text()):
    main(["sample", *arguments])
