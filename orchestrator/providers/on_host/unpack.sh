# Unpacks an archive of a Python: sh -s -- ARCHIVE NAME. It counts once it has its final name, beside
# the archive; what an earlier try left is thrown away. POSIX sh alone, and flock where there is one.
set -eu
archive=$1 folder=${1%/*} name=$2
if command -v flock >/dev/null; then
  exec 9>"$folder/.$name.lock"
  flock 9
  rm -rf "$folder/.$name".draft.*
fi
if [ ! -e "$folder/$name" ]; then
  draft=$(mktemp -d "$folder/.$name.draft.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  tar -xf "$archive" -C "$draft"
  for top in "$draft" "$draft"/* "$draft"/*/*; do
    if [ -x "$top/bin/python3" ]; then
      sync
      mv "$top" "$folder/$name"
      break
    fi
  done
  if [ ! -e "$folder/$name" ]; then
    echo "it holds no bin/python3" >&2
    exit 1
  fi
fi
rm -f "$archive"
