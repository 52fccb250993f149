# Lists the host's Pythons and its uv, a line each: sh -s -- ROOT. ROOT is below the home folder
# unless it is absolute. POSIX sh alone, since the host may have no Python at all.
case $1 in
/*) root=$1 ;;
*) root=$HOME/$1 ;;
esac
printf 'home\t%s\nroot\t%s\nmachine\t%s\n' "$HOME" "$root" "$(uname -sm)"

limit=$(command -v timeout) && limit="$limit 20"
probe='
import sys
missing = []
for name in ("ctypes", "ssl", "venv", "zlib"):
    try:
        __import__(name)
    except ImportError:
        missing.append(name)
words = ["%d.%d.%d" % sys.version_info[:3], "64" if sys.maxsize > 2**32 else "32"]
print("\t".join(words + [",".join(missing) or "-"]))
'

look() {
  [ -f "$1" ] && [ -x "$1" ] || return 0
  # Its standard input must not be this script.
  told=$($limit "$1" -I -S -c "$probe" 2>/dev/null </dev/null) || return 0
  printf 'python\t%s\t%s\n' "$told" "$1"
}

look_in() {
  for name in python3.13 python3.12 python3.11 python3; do
    look "$1/$name"
  done
}

set -f
old=$IFS
IFS=:
set -- $PATH
IFS=$old
set +f
for folder in "$@"; do
  case $folder in /*) look_in "$folder" ;; esac
done
look_in "$HOME/.local/bin"
for folder in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin \
  "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/*/bin \
  "$root"/pythons/*/bin; do
  look "$folder/python3"
done

for uv in "$(command -v uv)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" "$root/tools/bin/uv"; do
  if [ -n "$uv" ] && [ -x "$uv" ]; then
    printf 'uv\t%s\n' "$uv"
    break
  fi
done
exit 0
