"""Linux made to look like macOS or Windows as far as what Python offers there goes: run as `python other_systems.py SYSTEM CODE`.

Names, signals, devices and files that those systems lack are taken away once the libraries are loaded, before burnish is. Not
pretended: paths with drives and backslashes, files that cannot be replaced while they are open, and the systems' own libraries.
"""

import builtins
import ctypes
import io
import os
import signal
import sys
import time

_LACKING = {
    "darwin": {
        os: ("O_TMPFILE", "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "memfd_create", "pipe2"),
        time: ("CLOCK_BOOTTIME",),
    },
    "win32": {
        os: (
            "O_TMPFILE", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "posix_fallocate", "posix_fadvise",
            "sched_getaffinity", "sched_setaffinity", "sysconf", "pread", "pwrite", "preadv", "pwritev", "fork", "killpg",
            "setsid", "getpgid", "getuid", "geteuid", "getgid", "getegid", "getloadavg", "nice", "mkfifo", "mknod",
            "chown", "fchown", "fchmod", "lchown", "sendfile", "memfd_create", "pipe2", "uname", "sync",
            "WNOHANG", "getpriority", "setpriority",
        ),
        signal: ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGQUIT", "setitimer", "alarm",
                 "pthread_sigmask", "pthread_kill", "sigwait"),
        time: ("clock_gettime", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "CLOCK_REALTIME"),
    },
}  # fmt: skip
_MODULES_LACKING = {"darwin": (), "win32": ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix")}
_HIDDEN = ("/proc", "/sys")


def become(system: str) -> None:
    """From now on Python offers what it does on that system."""
    for name in ("torch", "torchvision", "timm", "sklearn.linear_model", "scipy.special", "PIL.Image", "subprocess", "tempfile",
                 "shutil", "multiprocessing", "asyncio", "socket", "matplotlib.pyplot", "torch.utils.tensorboard",
                 "concurrent.futures", "typer", "rich.progress", "starlette.applications", "uvicorn"):  # fmt: skip
        __import__(name)
    for module, names in _LACKING[system].items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in _MODULES_LACKING[system]:
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    _hide_files()
    ctypes.CDLL = _no_library  # type: ignore[assignment,misc]
    sys.platform = system


def _no_library(name: object, *args: object, **kwargs: object) -> object:
    raise OSError(f"{name}: no such library")


def _hide_files() -> None:
    """Linux's folders of what it tells of itself do not exist."""
    for home, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (os, "scandir"),
                       (os, "listdir"), (os, "link")):  # fmt: skip
        setattr(home, name, _unless_hidden(getattr(home, name)))


def _unless_hidden(real):
    def called(path=".", *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(_HIDDEN):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return real(path, *args, **kwargs)

    return called


if __name__ == "__main__":
    become(sys.argv[1])
    exec(sys.argv[2])
