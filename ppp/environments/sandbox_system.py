"""What a bubblewrap sandbox holds beside the tree: programs, libraries, a Python, a few files and variables.

Of the machine only what programs need to run is there, read-only. Python comes without installed packages: a later
release of the repository among them would hold the answer. `sandbox_bubblewrap.py` puts it together and starts it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ppp.types import RecipeError

SYSTEM_PYTHON = "/usr/bin/python3"
_ID = "1000"  # user and group as seen inside
FILES = {
    "/etc/passwd": f"agent:x:{_ID}:{_ID}::/tmp:/bin/bash\n",
    "/etc/group": f"agent:x:{_ID}:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}
# The configuration of a tree runs programs of its own through these.
_GIT_CONFIG = {
    "safe.directory": "*",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.sshCommand": "false",
    "core.editor": "false",
    "gc.auto": "0",
    "core.packedGitWindowSize": "32m",  # the default maps a gigabyte, which counts as memory of the process
    "core.packedGitLimit": "256m",
}
_VARIABLES = {
    "PATH": "/opt/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "USER": "agent",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "TZ": "UTC",
    "PAGER": "cat",
    "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_PAGER": "cat",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": str(len(_GIT_CONFIG)),
    **{f"GIT_CONFIG_KEY_{index}": name for index, name in enumerate(_GIT_CONFIG)},
    **{f"GIT_CONFIG_VALUE_{index}": value for index, value in enumerate(_GIT_CONFIG.values())},
}
_LIBRARIES = ("*-linux-*", "git-core", "locale", "python3.*", "terminfo")  # of /usr/lib, where it is laid out so
_SYSTEM = ("/usr/bin", "/usr/lib64", "/usr/libexec/git-core", "/usr/share/git-core", "/usr/share/terminfo")
_LINKS = ("/bin", "/lib", "/lib64")  # links into /usr today, folders of their own on older systems
_CONFIGURATION = ("/etc/alternatives", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Python:
    """The interpreter inside: the system's, or that of the trainer without what is installed for it."""

    executable: str
    prefix: str  # to be mounted; "" for the system's
    hidden: tuple[str, ...]  # folders of installed packages


@functools.cache
def python() -> Python:
    """The first interpreter of at least 3.9: the system's own, or else the one below the trainer's environment.

    Raises:
        RecipeError: neither is there.
    """
    ask = (
        "import json, sys, site, sysconfig; "
        "print(json.dumps([sys.version_info[:2], sorted({*site.getsitepackages(), *map(sysconfig.get_path, "
        "['purelib', 'platlib'])}), sysconfig.get_path('stdlib')]))"
    )
    base = str(Path(sys.base_prefix).resolve())
    own = f"{base}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for executable in (SYSTEM_PYTHON, own):
        if not os.path.exists(executable):
            continue
        said = subprocess.run([executable, "-I", "-c", ask], capture_output=True, text=True, check=False)
        if said.returncode:
            continue
        version, packages, library = json.loads(said.stdout)
        if tuple(version) < (3, 9):
            continue
        prefix = "" if executable.startswith("/usr/bin/") else base
        folders = {*packages, f"{library}/site-packages", f"{library}/dist-packages", f"{library}/ensurepip"}
        folders |= {f"{base}/envs", f"{base}/pkgs"} if prefix else {"/usr/lib/python3/dist-packages"}
        return Python(executable, prefix, tuple(sorted(str(Path(name)) for name in folders if os.path.isdir(name))))
    raise RecipeError(
        f"sandbox 'bubblewrap': there is no Python 3.9 or newer at {SYSTEM_PYTHON}, and the trainer's does not start"
    )


@functools.cache
def system_arguments() -> tuple[str, ...]:
    """The part of bubblewrap's arguments that is the same for all sandboxes of a process."""
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", _ID, "--gid", _ID]
    arguments += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    arguments += ["--cap-drop", "ALL"]
    libraries = ["/usr/lib"]
    if any(Path("/usr/lib").glob("*-linux-gnu")):
        libraries = sorted(str(path) for name in _LIBRARIES for path in Path("/usr/lib").glob(name))
    for path in (*_SYSTEM, *libraries, *_CONFIGURATION):
        arguments += ["--ro-bind-try", path, path]
    for name in _LINKS:
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        else:
            arguments += ["--ro-bind-try", name, name]
    for name in ("python", "python3"):
        arguments += ["--symlink", python().executable, f"/opt/bin/{name}"]
    for name, value in _VARIABLES.items():
        arguments += ["--setenv", name, value]
    return (*arguments, "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev")
