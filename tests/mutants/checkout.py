"""A copy of the checkout, in which tests run with a fault in one file, each time in a process of their own.

A fault in a function's body is put into the imported module after the tests are collected, which saves their
imports; any other into the file.
"""

import ast
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the tests import from the checkout lies in these folders of it.
FOLDERS = (".", "handlers", "client", "tests")
# Most memory of one process [bytes].
MEMORY = 8 << 30


@dataclass(frozen=True)
class Ran:
    """One test without any fault: what it costs, and the functions that it calls, as `file:line`."""

    test: str
    took_s: float
    # Of a processor, its children's included.
    cpu_s: float
    called: list[str]


class Collected:
    """A pytest plugin that, once all tests are collected, does something else with them than run them all."""

    def __init__(self, root: Path, output: Path, work: Callable[["Collected"], None]) -> None:
        self._root, self._output, self._work = root, output, work
        self._tests: dict[str, pytest.Item] = {}
        self._functions: dict[tuple[str, int], list[FunctionType]] = {}
        self._failed: set[str] = set()
        self._called: set[str] = set()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """See pytest."""
        self._tests = {item.nodeid: item for item in session.items}
        for function in gc.get_objects():
            if type(function) is FunctionType:  # isinstance asks proxies, which may warn
                code = function.__code__
                self._functions.setdefault((code.co_filename, code.co_firstlineno), []).append(function)
        gc.collect()
        gc.freeze()  # what is shared with all processes to come is not written to
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See pytest."""
        if report.failed:
            self._failed.add(report.nodeid)

    def record(self, file: Path) -> None:
        """Run every test, in another process, and write down what those that pass call."""
        ran: list[Ran] = []

        def work() -> int:
            threading.settrace(self._trace)
            for test, following in pairwise([*self._tests, ""]):
                self._called, started, busy_s = set(), time.monotonic(), sum(os.times()[:4])
                sys.settrace(self._trace)
                self._run(test, following)
                sys.settrace(None)
                took_s, cpu_s = time.monotonic() - started, sum(os.times()[:4]) - busy_s
                ran.append(Ran(test, took_s, cpu_s, sorted(self._called)))
            sound = [vars(test) for test in ran if test.test not in self._failed]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([sound, sorted(self._failed)]))
            return 0

        forked(work, self._output, 1200.0)

    def notices(
        self, path: str, fault: ast.Module, line: int, tests: list[str], timeout_s: float
    ) -> bool | None:
        """Whether tests notice a fault in the function whose first line is `line`; None: can't be said."""
        if gone := set(tests) - set(self._tests):
            raise SystemExit(f"tests that were not collected would pass for having noticed: {sorted(gone)}")
        file = str(self._root / path)
        new = _code_at(compile(fault, file, "exec"), line)
        if new is None:
            return None
        functions = self._functions.get((file, line), [])
        functions = [function for function in functions if function.__code__.co_name == new.co_name]
        if not functions or any(function.__code__.co_freevars != new.co_freevars for function in functions):
            return None

        def work() -> int:
            for function in functions:
                function.__code__ = new
            for test, following in pairwise([*tests, ""]):
                self._run(test, following)
                if self._failed:
                    return 1
            return 0

        return forked(work, self._output, timeout_s) != 0

    def _run(self, test: str, following: str) -> None:
        item = self._tests[test]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=self._tests.get(following))

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        del event, argument
        file = frame.f_code.co_filename
        if file.startswith(f"{self._root}/"):
            self._called.add(f"{file.removeprefix(f'{self._root}/')}:{frame.f_code.co_firstlineno}")


def _code_at(module: CodeType, line: int) -> CodeType | None:
    """Return the code of the function in a module, or in one of its classes, that begins at a line."""
    inner = [code for code in module.co_consts if isinstance(code, CodeType)]
    # A class's own code begins at its line as well, and has no locals.
    found = (code for code in inner if code.co_firstlineno == line and code.co_flags & CO_OPTIMIZED)
    deeper = (_code_at(code, line) for code in inner if not code.co_flags & CO_OPTIMIZED)
    return next(found, None) or next(filter(None, deeper), None)


def forked(work: Callable[[], int], output: Path | None, timeout_s: float) -> int:
    """Return a function's status, run in a process of its own; -9 when it takes too long.

    Args:
        work: what is run
        output: where all that it prints goes; None: here
        timeout_s: when it is ended
    """
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setsid()
            if output is not None:
                file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
            status = work()
        finally:
            os._exit(status)
    end, found = time.monotonic() + timeout_s, (0, 0)
    while found == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
        found = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(found[1])


def shared(folder: Path) -> ModuleType:
    """Return a pytest plugin in place of `conftest.py`, which exports the small policy in every session."""

    @pytest.fixture(scope="session")
    def tiny_folder() -> Path:
        return folder

    plugin = ModuleType("shared")
    vars(plugin)["tiny_folder"] = tiny_folder
    return plugin


class Checkout:
    """A copy of the files that git knows or does not ignore, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.root, self._folder = folder / "checkout", folder
        listed = ["git", "ls-files", "-zco", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
            if name and (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)
        self._output = folder / "output.txt"
        if forked(lambda: self._enter() or self._export(), self._output, 300.0):
            raise SystemExit(f"the small policy can't be exported:\n{self._output.read_text()[-3000:]}")

    def collect(self, paths: tuple[str, ...], work: Callable[[Collected], None]) -> None:
        """Collect the tests of some files or folders, in another process, and do something with them."""
        collected = Collected(self.root, self._output, work)
        if forked(lambda: self._enter() or self._pytest(["-s", *paths], collected), None, 36_000.0):
            raise SystemExit(f"the tests of {' '.join(paths)} can't be run")

    def passes(self, path: str, fault: ast.Module, tests: list[str], timeout_s: float) -> bool:
        """Whether all of these tests pass, in time, with a fault in a file."""
        sound = (self.root / path).read_text()
        (self.root / path).write_text(ast.unparse(fault))
        try:
            return not forked(lambda: self._enter() or self._pytest(["-x", *tests]), self._output, timeout_s)
        finally:
            (self.root / path).write_text(sound)

    def _pytest(self, arguments: list[str], *plugins: object) -> int:
        options = ["-qq", "--assert=plain", "--noconftest", "-p", "no:cacheprovider"]
        return int(pytest.main([*options, *arguments], [shared(self._folder / "tiny"), *plugins]))

    def _export(self) -> int:
        from making import write_checkpoint  # noqa: PLC0415

        from archive.read import unpack  # noqa: PLC0415
        from export.export import Options, export  # noqa: PLC0415

        checkpoint, archive = self._folder / "checkpoint", self._folder / "tiny.mar"
        checkpoint.mkdir()
        export(Options(str(write_checkpoint(checkpoint)), output=archive, buckets=(1, 2, 4, 8)))
        unpack(archive, self._folder / "tiny")
        return 0

    def _enter(self) -> None:
        """Let this process, and those that it starts, import from the copy."""
        here = {str((ROOT / folder).resolve()) for folder in FOLDERS} | {""}
        folders = [str((self.root / folder).resolve()) for folder in FOLDERS]
        sys.path[:] = folders + [path for path in sys.path if path not in here]
        # A file that is changed twice in a second would be taken for the former one.
        os.environ |= {"PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        os.chdir(self.root)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
