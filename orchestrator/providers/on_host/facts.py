"""What a host is like, as one line of JSON: `python - REQUEST < facts.py`.

Runs on the host, under any Python from 3.8 on, since it also judges hosts whose Python is too old.
Measures and decides nothing; changes nothing there. Imports the standard library alone. Nothing
here is secret: the request stands in the process list.
"""

# What comes and goes is JSON, and older Pythons must read this.
# pyright: basic

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOOL_SECONDS = 8
REACH_SECONDS = 5
GPU_FIELDS = "index,uuid,name,memory.total,memory.used"
APP_FIELDS = "gpu_uuid,pid"
LISTENING = "0A"
DEVICE_PATTERNS = ("accel[0-9]*", "vfio/[0-9]*")


def facts(request):
    root = absolute(request["root"])
    listeners = listening(request["proc"])
    holders = open_files(request["proc"], request["dev"], set(listeners.values()))
    return {
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "hostname": socket.gethostname(),
        "disk": disk(absolute(request["folder"]), request["proc"]),
        "gpus": gpus(request["proc"], root),
        "device_files": device_files(request["dev"]),
        "holders": processes(holders, request["proc"], root),
        "ports": ports(request["ports"], listeners, holders, request["proc"], root),
        "reach": reach(request["url"]) if request["url"] else None,
    }


def absolute(path):
    return Path.home() / path


# ---- disk ----------------------------------------------------------------------------------------


def disk(folder, proc):
    near = folder
    while not near.exists() and near != near.parent:
        near = near.parent
    found = os.statvfs(str(near))
    return {
        "folder": str(folder),
        "free": found.f_bavail * found.f_frsize,
        "inodes": found.f_favail if found.f_files else None,
        "writable": near.is_dir() and os.access(str(near), os.W_OK | os.X_OK),
        "kind": file_system(near.resolve(), proc),
    }


def file_system(path, proc):
    """The kind of the file system that `path` lies on, as in `nfs4`; None if it is not told."""
    best, kind = "", None
    for line in read(proc, "mounts").splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        at = words[1].replace("\\040", " ")
        inside = at == "/" or str(path) == at or str(path).startswith(at + "/")
        if inside and len(at) >= len(best):
            best, kind = at, words[2]
    return kind


# ---- devices -------------------------------------------------------------------------------------


def gpus(proc, root):
    """None where there is no nvidia-smi; else the GPUs, or the words of its failure.

    Who uses them is the driver's word: their files are also held by daemons that only watch.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    done = query(tool, "gpu", GPU_FIELDS)
    if isinstance(done, str):
        return {"failed": done, "found": [], "users": []}
    names = ("index", "uuid", "name", "total", "used")
    found = [dict(zip(names, words, strict=False)) for words in done if len(words) == len(names)]
    apps = query(tool, "compute-apps", APP_FIELDS)
    users = [
        {"uuid": words[0], "by": process(int(words[1]), proc, root)}
        for words in ([] if isinstance(apps, str) else apps)
        if len(words) == 2 and words[1].isdigit()
    ]
    return {"failed": None, "found": found, "users": users}


def query(tool, what, fields):
    argv = [tool, f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        return text or f"nvidia-smi ended with {done.returncode}"
    return [[word.strip() for word in line.split(",")] for line in text.splitlines()]


def device_files(dev):
    """Of TPUs: who has one open has it alone."""
    found = [path for pattern in DEVICE_PATTERNS for path in Path(dev).glob(pattern)]
    return sorted(str(path) for path in found)


def open_files(proc, dev, sockets):
    """Which processes hold a device's file or one of `sockets`: path or inode to process ids.

    Of other users' processes only root sees this.
    """
    wanted = set(device_files(dev)) | {f"socket:[{inode}]" for inode in sockets}
    found = {}
    for entry in Path(proc).iterdir():
        if not entry.name.isdigit():
            continue
        for target in wanted.intersection(held(entry / "fd")):
            found.setdefault(target, set()).add(int(entry.name))
    return found


def held(folder):
    """What the links of `folder` lead to; what goes while it is looked at is left out."""
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(str(link))  # noqa: PTH115 - Path.readlink came with 3.9


def processes(holders, proc, root):
    return {
        path: [process(pid, proc, root) for pid in sorted(pids)]
        for path, pids in holders.items()
        if not path.startswith("socket:")
    }


def process(pid, proc, root):
    """Its name and user alone: arguments may hold what is nobody's business."""
    try:
        uid = Path(proc, str(pid)).stat().st_uid
    except OSError:
        return {"pid": pid, "user": None, "name": "", "ours": False}
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    program = read(proc, f"{pid}/cmdline").split("\0")[0]
    ours = program.startswith(f"{root}/venvs/")
    return {"pid": pid, "user": user, "name": read(proc, f"{pid}/comm").strip(), "ours": ours}


# ---- ports ---------------------------------------------------------------------------------------


def listening(proc):
    """Ports that something listens on, with the inode of its socket."""
    found = {}
    for name in ("net/tcp", "net/tcp6"):
        for line in read(proc, name).splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == LISTENING:
                found[int(words[1].rpartition(":")[2], 16)] = words[9]
    return found


def ports(wanted, listeners, holders, proc, root):
    """The taken ones of the range, by whom as far as it can be seen."""
    if wanted is None:
        return None
    low, high = wanted
    taken = []
    for port in range(low, high + 1):
        why = not_free(port)
        if why is None:
            continue
        pids = sorted(holders.get(f"socket:[{listeners.get(port)}]", ()))
        by = process(pids[0], proc, root) if pids else None
        taken.append({"port": port, "by": by, "why": why})
    return {"low": low, "high": high, "taken": taken}


def not_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            return error.strerror
    return None


# ---- the control plane ---------------------------------------------------------------------------


def reach(url):
    """As an agent would ask: no proxy, the machine's own authorities."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
    )
    try:
        with opener.open(url + "/healthz", timeout=REACH_SECONDS) as response:
            body = response.read(1 << 16)
    except urllib.error.HTTPError as error:
        return {"trouble": "http", "words": f"it answered {error.code}"}
    except urllib.error.URLError as error:
        return {"trouble": trouble(error.reason), "words": str(error.reason)}
    except OSError as error:
        return {"trouble": trouble(error), "words": str(error)}
    try:
        return {"trouble": None, "installation": json.loads(body)["installation"]}
    except (ValueError, KeyError, TypeError):
        return {"trouble": "http", "words": "what answers there is no Longhaul"}


def trouble(reason):
    if isinstance(reason, ssl.SSLError):
        return "tls"
    if isinstance(reason, socket.gaierror):
        return "name"
    if isinstance(reason, ConnectionRefusedError):
        return "refused"
    # Before Python 3.10 this is no TimeoutError.
    return "timeout" if isinstance(reason, socket.timeout) else "other"


def read(proc, name):
    try:
        return Path(proc, name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main():
    began = time.time()
    found = facts(json.loads(sys.argv[1]))
    found["clock"] = [began, time.time()]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
