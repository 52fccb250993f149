# Whether an environment stands whole and its Python starts: sh -s -- ROOT VENV BUNDLE. Tells the
# root and the Python.
case $1 in
/*) root=$1 ;;
*) root=$HOME/$1 ;;
esac
venv=$root/venvs/$2
grep -q "$3" "$venv/whole.json" 2>/dev/null || exit 1
"$venv/bin/python" -I -S -c '' </dev/null || exit 1
printf '%s\n%s\n' "$root" "$venv/bin/python"
