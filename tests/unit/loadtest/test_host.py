"""Who else takes this host's CPU."""

import os
import subprocess
import sys
import time

from loadtest.host import Bystanders

BUSY = [sys.executable, "-c", "import time\nuntil = time.time() + 1\nwhile time.time() < until: pass"]
# Started by a shell that ends at once, so that it is no child of this process.
STRANGER = ["sh", "-c", '"$0" "$1" "$2" >/dev/null 2>&1 &', *BUSY]


def test_strangers_cpu_is_counted() -> None:
    bystanders = Bystanders()
    subprocess.run(STRANGER, check=True)
    time.sleep(1.2)

    assert 0.1 < bystanders.cores() < (os.cpu_count() or 1) + 0.5


def test_worker_that_has_ended_is_nobody() -> None:
    with subprocess.Popen(BUSY) as ended:
        ended.kill()

    assert Bystanders([ended.pid]).cores() >= 0
