"""The sandbox lets honest programs run and hostile ones neither pass nor harm."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from cogumi.errors import RunError
from evals import sandbox
from evals.sandbox import Limits, call_function, run_python, same_json

needs_sandbox = pytest.mark.skipif(not sandbox.available(), reason=sandbox.NO_SANDBOX)

BUSY = Limits(seconds=20, cpu_seconds=1)
IDLE = Limits(seconds=1)


def test_without_bubblewrap_nothing_runs(monkeypatch, tmp_path):
    sandbox.available.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        assert not sandbox.available()
        with pytest.raises(RunError, match=r"no sandbox: bubblewrap .* apt-get install bubblewrap"):
            run_python("open('/tmp/escaped', 'w')")
        with pytest.raises(RunError, match="no sandbox"):
            call_function("def f(): return 1", "f", [[]])
    finally:
        sandbox.available.cache_clear()


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1, True), (0, False), ("1", 1), ([1], [True]), ({"a": 1}, {"a": 1.0})]
)
def test_values_of_other_types_differ(left, right):
    assert left == right or isinstance(left, str)
    assert not same_json(left, right)


def test_equal_values_agree():
    assert same_json({"a": [1, "x", None, 1.5, True]}, {"a": [1, "x", None, 1.5, True]})
    assert not same_json([1], [1, 2])
    assert not same_json({"a": 1}, {"b": 1})


@needs_sandbox
class TestHonest:
    def test_output_input_and_exit_code(self):
        result = run_python(
            "import sys; print(input() + '!'); print('e', file=sys.stderr); sys.exit(3)", stdin="hi"
        )
        assert (result.exit_code, result.stdout, result.stderr) == (3, "hi!\n", "e\n")
        assert not result.timed_out
        assert not result.truncated

    def test_standard_library_and_private_tmp(self):
        source = (
            "import math, json, re, collections, heapq, decimal, hashlib, tempfile\n"
            "with tempfile.NamedTemporaryFile('w') as file: file.write('x')\n"
            "print(math.gcd(12, 18))"
        )
        result = run_python(source)
        assert (result.exit_code, result.stdout) == (0, "6\n"), result.stderr

    def test_function_results_are_json(self):
        source = "def f(a, b=2):\n    print('noise')\n    return {'sum': a + b, 'pair': (a, b)}"
        assert call_function(source, "f", [[1], [1, 5]]) == [
            {"sum": 3, "pair": [1, 2]},
            {"sum": 6, "pair": [1, 5]},
        ]

    @pytest.mark.parametrize(
        "source",
        [
            "def f(x): return object()",
            "def f(x): return {1: 2}",
            "def f(x): return 1 / 0",
            "def f(x: return",
            "def g(x): return x",
            "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E(0)",
            "def f(x):\n    v = []\n    v.append(v)\n    return v",
        ],
    )
    def test_what_is_not_an_answer_is_none(self, source):
        assert call_function(source, "f", [[1]]) is None


# Each is a solution to "f(x) returns x + 1" that answers by force; none may yield the results [2, 3].
FORGERIES = {
    "exit 0 early": "import os\nos._exit(0)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "exit inside the call": "import os\ndef f(x): os._exit(0)",
    "printed results": "print('[2, 3]')\nraise SystemExit(0)",
    "guessed nonce": "import os\nos.write(1, b'00000000000000000000000000000000 [2, 3]\\n')\nos._exit(0)",
    "always equal object": (
        "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "def f(x): return Any()"
    ),
    "closed channel": "import os\ndef f(x):\n    os.closerange(0, 64)\n    return 2",
    "broken json": "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(x): return x",
    "killed parent": (
        "import os, signal\nos.kill(1, signal.SIGKILL)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\ndef f(x): return 0"
    ),
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
}


@needs_sandbox
@pytest.mark.parametrize("name", FORGERIES)
def test_forged_results_do_not_pass(name):
    results = call_function(FORGERIES[name], "f", [[1], [2]], BUSY)
    assert not same_json(results, [2, 3])


@needs_sandbox
class TestHostile:
    def test_fork_bomb_is_refused(self):
        source = "import os\nwhile True:\n    os.fork()"
        limits = _marked(BUSY)
        result = run_python(source, limits=limits)
        assert result.exit_code != 0
        assert "BlockingIOError" in result.stderr or result.timed_out
        assert _all_ended(limits)

    def test_thread_bomb_is_refused(self):
        source = (
            "import threading, time\n"
            "for n in range(500): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
        )
        result = run_python(source, limits=BUSY)
        assert result.exit_code != 0
        assert "can't start new thread" in result.stderr

    def test_memory_bomb_is_refused(self):
        result = run_python("blocks = []\nwhile True: blocks.append(bytearray(1 << 24))", limits=BUSY)
        assert result.exit_code != 0
        assert "MemoryError" in result.stderr

    def test_disk_bomb_is_refused(self):
        source = (
            "written = 0\ntry:\n    for n in range(100):\n        with open(f'/tmp/{n}', 'wb') as file:\n"
            "            written += file.write(bytes(1 << 20))\n"
            "except OSError as error: print(written, error)"
        )
        result = run_python(source, limits=Limits(disk=4 << 20))
        assert "No space left" in result.stdout
        assert int(result.stdout.split()[0]) <= 4 << 20

    def test_huge_file_is_refused(self):
        result = run_python("open('/tmp/x', 'wb').truncate(1 << 40)")
        assert result.exit_code != 0

    def test_endless_loop_ends(self):
        assert run_python("while True: pass", limits=BUSY).exit_code == 128 + signal.SIGKILL

    def test_endless_sleep_ends(self):
        assert run_python("import time\ntime.sleep(60)", limits=IDLE).timed_out

    def test_endless_output_is_cut(self):
        result = run_python("while True: print('x' * 4096)", limits=BUSY)
        assert result.truncated
        assert len(result.stdout) == BUSY.output

    def test_ignored_signals_do_not_save_it(self):
        source = (
            "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\ntime.sleep(60)"
        )
        assert run_python(source, limits=IDLE).timed_out

    def test_deleting_everything_deletes_nothing(self, tmp_path):
        marker = tmp_path / "marker"
        marker.write_text("here")
        home = Path.home()
        before = sorted(path.name for path in home.iterdir())
        source = (
            "import os, shutil\n"
            f"for root in ({str(home)!r}, {str(tmp_path)!r}, '/etc', '/usr/bin'):\n"
            "    shutil.rmtree(root, ignore_errors=True)\n"
            f"print(os.path.exists({str(marker)!r}), os.path.exists('/usr/bin'))"
        )
        assert run_python(source).stdout == "False True\n"
        assert marker.read_text() == "here"
        assert sorted(path.name for path in home.iterdir()) == before

    def test_home_and_workspace_are_not_there(self):
        source = (
            "import os, sys\n"
            "system = ('/usr', '/lib', '/dev', '/bin', sys.base_prefix + '/lib')\n"
            "for folder, folders, files in os.walk('/'):\n"
            "    if folder.startswith(system): folders.clear()\n"
            "    else: print(*(os.path.join(folder, name) for name in files), sep='\\n')"
        )
        found = {path for path in run_python(source).stdout.split("\n") if path}
        assert "/program.py" in found
        interpreter = {path for path in found if path.startswith(f"{sys.base_prefix}/bin/python")}
        assert found - interpreter <= {"/program.py", "/etc/ld.so.cache"}

    def test_system_is_read_only(self):
        source = (
            "import os\n"
            "for path in ('/x', '/usr/x', '/etc/x', '/dev/x', '/dev/shm/x', '/program.py', os.__file__):\n"
            "    try: open(path, 'a').close()\n"
            "    except OSError: continue\n"
            "    print('wrote', path)"
        )
        result = run_python(source)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr

    def test_environment_is_empty(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        source = (
            "import os\nprint(dict(os.environ))\n"
            "for path in ('/proc/self/environ', '/proc/1/environ'):\n"
            "    try: print(open(path).read())\n"
            "    except OSError as error: print(type(error).__name__)"
        )
        result = run_python(source)
        assert "very-secret" not in result.stdout + result.stderr
        assert "OPENAI_API_KEY" not in result.stdout
        assert result.stdout.count("FileNotFoundError") == 2

    @pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"])
    def test_no_network(self, family):
        result = run_python(f"import socket\nsocket.socket(socket.{family}, socket.SOCK_STREAM)")
        assert "PermissionError" in result.stderr

    def test_no_privileges(self):
        source = (
            "import ctypes, os\n"
            "lib = ctypes.CDLL(None, use_errno=True)\n"
            "new_user, new_mount = 0x10000000, 0x00020000\n"
            "print(lib.unshare(new_user), lib.unshare(new_mount), lib.setuid(0), lib.chroot(b'/tmp'))\n"
            "print(lib.mount(b'none', b'/tmp', b'tmpfs', 0, None), lib.ptrace(0, 0, 0, 0))\n"
            "print(os.getuid() == 0, lib.shmget(0, 4096, 0o1600))"
        )
        assert run_python(source).stdout == "-1 -1 -1 -1\n-1 -1\nFalse -1\n"

    def test_limits_cannot_be_raised(self):
        source = (
            "import resource\n"
            "for name in ('RLIMIT_AS', 'RLIMIT_NPROC', 'RLIMIT_CPU', 'RLIMIT_FSIZE'):\n"
            "    kind = getattr(resource, name)\n"
            "    try: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
            "    except (ValueError, PermissionError): continue\n"
            "    print('raised', name)"
        )
        result = run_python(source)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr

    def test_daemonised_child_does_not_survive(self):
        source = (
            "import os, sys, time\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    sys.argv[:] = []\n"
            "    while True: time.sleep(1)\n"
            "print('left a child')"
        )
        limits = _marked(Limits(seconds=10))
        result = run_python(source, limits=limits)
        assert result.stdout == "left a child\n"
        assert not result.timed_out
        assert _all_ended(limits)

    def test_symlink_does_not_escape(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("top secret")
        source = (
            f"import os\nos.symlink({str(secret)!r}, '/tmp/link')\n"
            "try: print(open('/tmp/link').read())\nexcept OSError as error: print(type(error).__name__)\n"
            f"os.symlink('/tmp/{'../' * 8}{tmp_path.relative_to('/')}', '/tmp/up')\n"
            "try: print(os.listdir('/tmp/up'))\nexcept OSError as error: print(type(error).__name__)"
        )
        assert run_python(source).stdout == "FileNotFoundError\nFileNotFoundError\n"

    def test_bubblewrap_error_cannot_be_faked(self):
        source = "import sys\nprint('bwrap: No permissions', file=sys.stderr)\nsys.exit(1)"
        assert run_python(source).exit_code == 1

    def test_no_descriptor_of_ours_is_inherited(self):
        source = (
            "import os\nfor number in range(3, 64):\n    try: os.fstat(number)\n"
            "    except OSError: continue\n    print(number)"
        )
        assert run_python(source).stdout == ""


def _marked(limits: Limits) -> Limits:
    """Return limits whose memory, which stands on the command line, tells this run from all others."""
    return dataclasses.replace(limits, memory=limits.memory + random.randrange(1, 1 << 20))


def _all_ended(limits: Limits) -> bool:
    """Return whether no process of the marked run is left, once the kernel has had time to end them."""
    mark = f"\0{limits.memory}\0".encode()
    for _ in range(50):
        left = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                left += [path] if mark in path.read_bytes() else []
        if not left:
            return True
        time.sleep(0.1)
    return False
