"""A fresh Python for each check, without the seconds that importing torch takes.

``python(code)`` is ``python -c code`` in a process that has imported torch and numpy and nothing of
ours. One process imports them, and forks for each call.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback

LIMIT = 300  # seconds


def python(code: str, *arguments: str, cwd: str = ".", **variables: str):
    """Run ``code`` with ``sys.argv[1:] = arguments`` and more environment variables.

    VAE_FAST_* variables of this process are not handed on. Returns a ``CompletedProcess``.
    """
    server = _server(os.environ.get("PYTHONPATH", ""))
    request = {"code": code, "arguments": arguments, "cwd": os.path.abspath(cwd), "env": variables}
    print(json.dumps(request), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the process that forks has ended"
    return subprocess.CompletedProcess(code, **json.loads(answer))


@functools.cache
def _server(_: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VAE_FAST_")}
    # The same packages as here, wherever pytest found them.
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, __file__],
        env=environment,
        stdin=subprocess.PIPE,  # the server ends when it is closed
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    sys.path[0] = ""  # as python -c has it
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                _run(request, out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            answer = {"returncode": os.waitstatus_to_exitcode(status)}
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                answer[name] = file.read().decode()
        print(json.dumps(answer), flush=True)


def _run(request: dict, out: int, err: int) -> None:
    """In the child: never returns."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.alarm(LIMIT)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["arguments"]]
    code = 0
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
