"""Bootstrap on this machine as a host: real environments, tiny wheels, Pythons of every kind."""

from __future__ import annotations

import subprocess
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from orchestrator.providers import wheelhouse
from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.bootstrap import BootstrapFailed, Installed, Options, ensure
from orchestrator.providers.interpreters import ConnectionLost
from orchestrator.providers.wheelhouse import Bundle, packed, repacked
from tests.fakes.local_shell import MINOR, REAL, UV, LocalShell, Lost, locked, wheel

OPTIONS = Options(host="gpu-1", imports=("ours", "theirs"), seconds=120.0)


@pytest.fixture
def host(tmp_path: Path) -> LocalShell:
    """With a Python that fits, and uv."""
    shell = LocalShell(tmp_path / "host")
    shell.python()
    shell.has_uv()
    return shell


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Our wheel, and the wheel that the lock asks for."""
    return bundle_of(tmp_path)


def bundle_of(tmp_path: Path, *more: Path) -> Bundle:
    theirs = wheel(tmp_path / "wheels", "theirs", "ANSWER = 42\n")
    for path in more:
        (tmp_path / "wheels" / path.name).write_bytes(path.read_bytes())
    ours = wheel(tmp_path / "own", "ours", "import theirs\n")
    return packed(tmp_path / "bundles", [ours], locked(theirs), tmp_path / "wheels")


def answer(installed: Installed) -> str:
    program = "import ours, theirs; print(theirs.ANSWER)"
    done = subprocess.run(
        [installed.python, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def archive_of(tmp_path: Path, program: str = "bin/python3") -> Path:
    """A Python as an archive has it, one folder deep."""
    tree = tmp_path / "tree" / "python"
    (tree / program).parent.mkdir(parents=True)
    (tree / program).write_text(f'#!/bin/sh\nexec {REAL} "$@"\n')
    (tree / program).chmod(0o755)
    with tarfile.open(tmp_path / "python.tar.gz", "w:gz") as archive:
        archive.add(tree, "python")
    return tmp_path / "python.tar.gz"


# ---- once, and whole -----------------------------------------------------------------------------


def test_it_is_made_once_and_then_only_looked_at(host: LocalShell, bundle: Bundle):
    first = ensure(host, bundle, OPTIONS)
    assert first.made
    assert first.root == str(host.home / ".longhaul")
    assert first.python.startswith(f"{first.root}/venvs/")
    assert answer(first) == "42"
    marker = Path(first.python).parent.parent / "whole.json"
    made, carried = marker.stat().st_mtime_ns, len(host.carried)
    host.asked.clear()
    again = ensure(host, bundle, OPTIONS)
    assert again == Installed(first.python, first.root, made=False)
    assert (len(host.asked), len(host.carried)) == (1, carried)
    assert marker.stat().st_mtime_ns == made


def test_another_bundle_gets_an_environment_of_its_own(
    host: LocalShell, bundle: Bundle, tmp_path: Path
):
    """This one for GPUs: what they need beside the lock comes by the wheel's own extra."""
    first = ensure(host, bundle, OPTIONS)
    gpu = ("Provides-Extra: gpu", "Requires-Dist: theirs; extra == 'gpu'")
    ours = wheel(tmp_path / "own", "ours", "import theirs  # later\n", *gpu)
    later = packed(tmp_path / "bundles", [ours], "", tmp_path / "wheels")
    second = ensure(host, later, Options(host="gpu-1", imports=OPTIONS.imports, extra="gpu"))
    assert second.python != first.python
    assert answer(first) == answer(second) == "42"


def test_one_that_was_half_made_is_made_again(host: LocalShell, bundle: Bundle):
    first = ensure(host, bundle, OPTIONS)
    venv = Path(first.python).parent.parent
    (venv / "whole.json").unlink()
    poison = next(venv.glob("lib/python*/site-packages/theirs.py"))
    poison.write_text("ANSWER = 'poison'\n")
    second = ensure(host, bundle, OPTIONS)
    assert second.made
    assert answer(second) == "42"


def test_an_installer_that_is_killed_leaves_nothing_that_counts(host: LocalShell, bundle: Bundle):
    host.program("uv", 'if [ ! -e "$HOME/killed" ]; then : >"$HOME/killed"; kill -9 $PPID; exit; fi'
                 f'\nexec {UV} --no-cache "$@"')  # fmt: skip
    with pytest.raises(ProviderError):
        ensure(host, bundle, OPTIONS)
    venvs = host.home / ".longhaul" / "venvs"
    assert [path.name for path in venvs.iterdir()]
    assert not list(venvs.glob("*/whole.json"))
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


def test_programs_of_a_killed_installer_keep_the_next_one_waiting(host: LocalShell, bundle: Bundle):
    """Else the rest of an old pip would write into the new environment."""
    host.program(
        "uv",
        'if [ -e "$HOME/killed" ]; then',
        '  [ -e "$HOME/over" ] || { echo "begun too early" >&2; exit 1; }',
        f'  exec {UV} --no-cache "$@"',
        "fi",
        ': >"$HOME/killed"; kill -9 $PPID; exec >/dev/null 2>&1',
        'sleep 1; : >"$HOME/over"',
    )
    with pytest.raises(ProviderError):
        ensure(host, bundle, OPTIONS)
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


def test_an_environment_whose_python_is_gone_is_made_again(host: LocalShell, bundle: Bundle):
    first = ensure(host, bundle, OPTIONS)
    for link in Path(first.python).parent.glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python")
    assert ensure(host, bundle, OPTIONS).made
    assert answer(first) == "42"


def test_a_bundle_that_arrives_cut_short_is_not_unpacked(host: LocalShell, bundle: Bundle):
    whole, host.put = host.put, lambda *_: None

    def cut(source: Path, path: str, mode: int = 0o600) -> None:
        Path(path).write_bytes(source.read_bytes()[:-2000])

    host.put = cut
    with pytest.raises(BootstrapFailed, match="not whole"):
        ensure(host, bundle, OPTIONS)
    host.put = whole
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


def test_two_at_once_make_one(host: LocalShell, bundle: Bundle):
    together = threading.Barrier(2)

    def call() -> Installed:
        together.wait()
        return ensure(host, bundle, OPTIONS)

    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(call), pool.submit(call)])
    assert first.python == second.python
    assert sorted((first.made, second.made)) == [False, True]
    assert answer(first) == "42"


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_lost_connection_is_not_taken_for_an_end(host: LocalShell, bundle: Bundle, at: int):
    with pytest.raises(ConnectionLost):
        ensure(Lost(host, at), bundle, OPTIONS)
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


# ---- which Python --------------------------------------------------------------------------------


@pytest.mark.parametrize("python", ["3.10.12", None], ids=["only 3.10", "none"])
def test_a_host_without_a_fitting_python_unpacks_the_archive(
    tmp_path: Path, bundle: Bundle, python: str | None
):
    """As on a TPU image that reaches no index: all wheels came along."""
    host = LocalShell(tmp_path / "host")
    host.has_uv()
    if python:
        host.old_python(python)
    archive = archive_of(tmp_path)
    options = Options("tpu-1", imports=OPTIONS.imports, archive=lambda: archive)
    installed = ensure(host, bundle, options)
    assert answer(installed) == "42"
    pythons = host.home / ".longhaul" / "pythons"
    assert [path.name[0] != "." for path in pythons.glob("*/bin/python3")] == [True]
    assert not list(pythons.glob("*.archive"))


def test_an_archive_without_a_python_is_told(tmp_path: Path, bundle: Bundle):
    host = LocalShell(tmp_path / "host")
    host.old_python()
    archive = archive_of(tmp_path, program="bin/perl")
    with pytest.raises(ProvisionRefused) as refused:
        ensure(host, bundle, Options("tpu-1", archive=lambda: archive))
    told = str(refused.value)
    assert "tpu-1: no Python 3.11 to 3.13; it has Python 3.10.12 at" in told
    assert "python.tar.gz could not be unpacked there: it holds no bin/python3" in told
    assert told.endswith("[python]")


MAKES_A_PYTHON = (
    'if [ "$1 $2" = "python install" ]; then',
    '  mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython/bin"',
    "  python=$UV_PYTHON_INSTALL_DIR/cpython/bin/python3",
    f"""  printf '#!/bin/sh\\nexec {REAL} "$@"\\n' >"$python"; chmod +x "$python" """,
    '  echo "$3" >"$HOME/wanted"',
    "  exit 0",
    "fi",
    f'exec {UV} --no-cache "$@"',
)


def test_where_an_index_is_reached_uv_installs_a_python(tmp_path: Path, bundle: Bundle):
    host = LocalShell(tmp_path / "host")
    (host.bin / "chmod").symlink_to("/bin/chmod")
    host.old_python()
    host.program("uv", *MAKES_A_PYTHON)
    assert answer(ensure(host, bundle, OPTIONS)) == "42"
    assert (host.home / "wanted").read_text().strip() == MINOR


def test_where_there_is_no_uv_the_hosts_pip_installs_it(tmp_path: Path, bundle: Bundle):
    host = LocalShell(tmp_path / "host")
    for tool in ("chmod", "cp"):
        (host.bin / tool).symlink_to(f"/bin/{tool}")
    uv = host.program("uv", *MAKES_A_PYTHON, folder=tmp_path / "index")
    host.old_python(
        "3.10.12",
        'case "$*" in *"-m pip install"*)',
        '  while [ "$1" != --target ]; do shift; done',
        f'  mkdir -p "$2/bin" && cp {uv} "$2/bin/uv" && exit 0;;',
        "esac",
    )
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


def test_a_host_that_reaches_no_index_and_has_no_archive_is_refused(tmp_path: Path, bundle: Bundle):
    host = LocalShell(tmp_path / "host")
    host.old_python("3.10.12", 'case "$*" in *pip*) echo "no route to host" >&2; exit 1;; esac')
    with pytest.raises(ProvisionRefused) as refused:
        ensure(host, bundle, OPTIONS)
    told = str(refused.value)
    assert "it has Python 3.10.12 at" in told
    assert "pip could not install it: no route to host" in told
    assert "python_archive" in told


def test_pythons_are_found_where_their_managers_keep_them(tmp_path: Path, bundle: Bundle):
    host = LocalShell(tmp_path / "host")
    host.has_uv()
    host.old_python()
    host.python(folder=host.home / ".pyenv" / "versions" / "3.11.7" / "bin")
    assert answer(ensure(host, bundle, OPTIONS)) == "42"


# ---- with what it is filled ----------------------------------------------------------------------


def pip_wheel(tmp_path: Path) -> Path:
    (tmp_path / "pip").mkdir()
    return repacked(distribution("pip"), tmp_path / "pip")


def test_without_uv_and_ensurepip_the_pip_that_came_along_does_it(tmp_path: Path):
    """Debian ships ensurepip apart."""
    host = LocalShell(tmp_path / "host")
    no_ensurepip = (
        'case "$*" in *--without-pip*) ;; *"-m venv"*) echo "no ensurepip"; exit 1;; esac'
    )
    host.python("python3", no_ensurepip)
    host.extra["PIP_NO_COMPILE"] = "1"
    installed = ensure(host, bundle_of(tmp_path, pip_wheel(tmp_path)), OPTIONS)
    assert answer(installed) == "42"


def test_what_can_not_be_installed_is_told(host: LocalShell, tmp_path: Path):
    ours = wheel(tmp_path / "own", "ours", "")
    absent = wheel(tmp_path / "elsewhere", "absent", "")
    host.extra["UV_INDEX_URL"] = host.extra["UV_DEFAULT_INDEX"] = "http://127.0.0.1:1"
    host.extra["UV_HTTP_RETRIES"] = "0"
    bundle = packed(tmp_path / "bundles", [ours], locked(absent))
    with pytest.raises(BootstrapFailed, match=r"gpu-1: .*from the host's index: .*absent"):
        ensure(host, bundle, OPTIONS)


def test_a_root_that_can_not_be_made_is_told(host: LocalShell, bundle: Bundle):
    (host.home / "taken").write_text("")
    with pytest.raises(ProviderError, match=r"could not make .*taken/bundles"):
        ensure(host, bundle, Options("gpu-1", root="taken"))


# ---- the bundle ----------------------------------------------------------------------------------


def test_the_same_software_has_the_same_name(tmp_path: Path):
    first = wheelhouse.software(tmp_path / "one")
    second = wheelhouse.software(tmp_path / "two")
    assert first.name == second.name
    with tarfile.open(first.path) as archive:
        names = archive.getnames()
        lock = archive.extractfile("pins.txt")
        assert lock is not None
        pins = lock.read().decode()
    assert names[:2] == ["lock.txt", "pins.txt"]
    assert [Path(name).parts[0] for name in names[2:]] == ["own"]
    assert "--hash" not in pins
    assert any(line.startswith("jax==") for line in pins.splitlines())
    assert [path.name for path in (tmp_path / "one").iterdir()] == [first.path.name]


def test_longhaul_itself_is_installed_and_can_be_packed_again(host: LocalShell, tmp_path: Path):
    """Its own wheel alone: what it needs of others is in the lock, and the network is elsewhere."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    bundle = packed(tmp_path / "bundles", [wheelhouse.own_wheel(scratch)], "")
    installed = ensure(host, bundle, Options("gpu-1", imports=("worker", "model")))
    venv = Path(installed.python).parent.parent
    assert (venv / "share" / "longhaul" / "run.txt").read_text() == wheelhouse.own_lock()
    [packages] = venv.glob("lib/python*/site-packages")
    [found] = Distribution.discover(name="longhaul", path=[str(packages)])
    (tmp_path / "again").mkdir()
    again = repacked(found, tmp_path / "again")
    assert names_in(again) == names_in(next(scratch.glob("*.whl")))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return sorted(name for name in archive.namelist() if ".data/" not in name)
