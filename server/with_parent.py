"""`python with_parent.py PARENT PROGRAM ARGUMENTS...`: becomes a program that is killed when its parent ends.

So nothing is left behind that would keep the ports, however the parent ends. Linux alone.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # it may have ended before
        os.execv(command[0], command)
