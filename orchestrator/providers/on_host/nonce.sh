# Whether a folder is the same one on several hosts: sh -s -- DO FOLDER NAME TEXT. DO is write, read
# (prints what is there; fails where the folder can not be written) or remove.
set -eu
file=$2/$3
case $1 in
write)
  mkdir -p "$2"
  printf '%s' "$4" >"$file"
  sync "$file" 2>/dev/null || sync
  ;;
read)
  cat "$file"
  [ -w "$2" ] || { echo "this user may not write there" >&2; exit 3; }
  ;;
remove) rm -f "$file" ;;
esac
