#!/bin/sh
# Puts the built program, its man pages and completions, the helpers of mount(8) and umount(8), and a systemd unit where
# they belong, or removes them.
# usage: mount-scripts/install.sh [--system|--user] [--prefix DIR] [--uninstall]
# --system (as root, the default then): below /usr/local, and /sbin/mount.fuse.tsimgfs. --user: below ~/.local.
# DESTDIR in the environment is put before all places. What was installed is listed in PREFIX/lib/tsimgfs/installed.
set -eu

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$ROOT/mount-scripts/setup.sh"
INCOMPLETE= # an installation that has begun: removed again if it fails
COMMAND=    # a temporary file

cleanup() {
  setup_cleanup
  [ -z "$COMMAND" ] || rm -f -- "$COMMAND"
  [ -z "$INCOMPLETE" ] || uninstall
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
umask 022

SCOPE=
PREFIX=
UNINSTALL=
while [ $# -gt 0 ]; do
  case $1 in
    --system | --user) SCOPE=${1#--} ;;
    --prefix) [ $# -ge 2 ] || die "--prefix needs a directory"; PREFIX=$2; shift ;;
    --prefix=*) PREFIX=${1#*=} ;;
    --uninstall) UNINSTALL=1 ;;
    -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;;
    *) die "unknown argument $1 (usage: install.sh [--system|--user] [--prefix DIR] [--uninstall])" ;;
  esac
  shift
done
DESTDIR=${DESTDIR-}
if [ -z "$SCOPE" ]; then
  SCOPE=user
  [ "$(id -u)" != 0 ] || SCOPE=system
fi
if [ "$SCOPE" = system ]; then
  [ "$(id -u)" = 0 ] || [ -n "$DESTDIR" ] || die "--system needs root; --user installs for you alone"
  PREFIX=${PREFIX:-/usr/local}
  UNITS=$PREFIX/lib/systemd/system
else
  [ -n "${HOME-}" ] || die "HOME is not set"
  PREFIX=${PREFIX:-$HOME/.local}
  UNITS=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
fi
case $PREFIX in
  /*) ;;
  *) PREFIX=$PWD/$PREFIX ;;
esac
# Blanks are fine between quotes, in a unit, too.
case $PREFIX$DESTDIR in
  *[\\\"\'%\$\`\|\&]* | *[[:cntrl:]]*) die "$DESTDIR$PREFIX: has characters that a shell or a systemd unit may take for its own; name another place with --prefix" ;;
esac
LIB=$PREFIX/lib/tsimgfs
LIST=$DESTDIR$LIB/installed

# Each line: f or d, a blank, a path without DESTDIR. It is written before the thing is made: whenever this is
# interrupted, the list has all that there is.
record() { printf '%s %s\n' "$1" "$2" >>"$LIST"; }

# claim PATH: what somebody else has put there stays.
claim() {
  { [ ! -e "$DESTDIR$1" ] && [ ! -L "$DESTDIR$1" ]; } || grep -qsxF -e "f $1" "$LIST" ||
    die "$DESTDIR$1: is there already, and not of this installation; remove it first"
}

# make_directory PATH: with its parents; those that are new are recorded.
make_directory() {
  [ ! -d "$DESTDIR$1" ] || return 0
  case $1 in
    */*) make_directory "${1%/*}" ;;
  esac
  [ -n "$1" ] || return 0
  mkdir -- "$DESTDIR$1"
  if [ -f "$LIST" ]; then record d "$1"; else PENDING="$PENDING$1
"; fi
}

# put FILE PATH [MODE]
put() {
  make_directory "${2%/*}"
  claim "$2"
  record f "$2"
  cp -- "$1" "$DESTDIR$2"
  chmod "${3:-644}" "$DESTDIR$2"
}

# put_link TARGET PATH
put_link() {
  make_directory "${2%/*}"
  claim "$2"
  record f "$2"
  ln -s -- "$1" "$DESTDIR$2"
}

uninstall() {
  [ -f "$LIST" ] || return 0
  while read -r kind path; do
    [ "$kind" != f ] || rm -f -- "$DESTDIR$path"
  done <"$LIST"
  # From the innermost on; a directory that has something else in it stays.
  directories=$(sed -n 's/^d //p' "$LIST" | sort -r)
  rm -f -- "$LIST"
  printf '%s\n' "$directories" | while read -r path; do
    [ -z "$path" ] || rmdir -- "$DESTDIR$path" 2>/dev/null || :
  done
}

if [ -n "$UNINSTALL" ]; then
  [ -f "$LIST" ] || { say "Nothing is installed below $DESTDIR$PREFIX"; exit 0; }
  uninstall
  say "Removed from $DESTDIR$PREFIX"
  exit 0
fi

require_node
[ -d "$ROOT/node_modules/koffi" ] || install_modules
build
NODE=$(node -p process.execPath)

claim "$PREFIX/bin/tsimgfs"
claim "$UNITS/tsimgfs@.service"
claim "$PREFIX/share/bash-completion/completions/tsimgfs"
claim "$PREFIX/share/zsh/site-functions/_tsimgfs"
claim "$PREFIX/share/fish/vendor_completions.d/tsimgfs.fish"
for helper in mount umount; do
  [ "$SCOPE" != system ] || claim "/sbin/$helper.fuse.tsimgfs"
done

# What an earlier version has put there goes first: it may have had other files.
uninstall
INCOMPLETE=1
PENDING=
make_directory "$LIB"
: >"$LIST"
printf '%s' "$PENDING" | while read -r path; do
  record d "$path"
done

put "$ROOT/package.json" "$LIB/package.json"
put "$ROOT/LICENSE" "$LIB/LICENSE"
# The packages that the program needs at run time, with what those need.
packages=$(node -e '
  const { existsSync, readFileSync } = require("node:fs");
  const [, root] = process.argv;
  const found = new Set();
  const visit = (file) => {
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(file, "utf8"));
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) {
      const directory = `${root}/node_modules/${name}`;
      if (found.has(name) || !existsSync(directory)) continue;
      found.add(name);
      visit(`${directory}/package.json`);
    }
  };
  visit(`${root}/package.json`);
  console.log([...found].map((name) => `node_modules/${name}`).join("\n"));' "$ROOT")
for file in $(cd "$ROOT" && find dist -type f ! -name .built); do
  put "$ROOT/$file" "$LIB/$file"
done
for package in $packages; do
  # What Node loads, and licenses: no sources, no documentation.
  files=$(cd "$ROOT/$package" && find . -type f '(' -name '*.js' -o -name '*.[cm]js' -o -name '*.json' -o -name '*.node' -o -iname 'licen[cs]e*' ')')
  for file in $files; do
    put "$ROOT/$package/${file#./}" "$LIB/$package/${file#./}"
  done
done

# Where man and the shells look, for a prefix such as /usr/local or ~/.local.
for page in "$ROOT"/dist/man/*.1; do
  put "$page" "$PREFIX/share/man/man1/${page##*/}"
done
put "$ROOT/dist/completions/tsimgfs.bash" "$PREFIX/share/bash-completion/completions/tsimgfs"
put "$ROOT/dist/completions/_tsimgfs" "$PREFIX/share/zsh/site-functions/_tsimgfs"
put "$ROOT/dist/completions/tsimgfs.fish" "$PREFIX/share/fish/vendor_completions.d/tsimgfs.fish"

COMMAND=$(mktemp "${TMPDIR:-/tmp}/tsimgfs-install.XXXXXX")
# A service has another PATH than you: the program is bound to this node.
printf '#!/bin/sh\nexec "%s" "%s/dist/cli/main.js" "$@"\n' "$NODE" "$LIB" >"$COMMAND"
put "$COMMAND" "$LIB/tsimgfs" 755
sed "/^#/!s|@TSIMGFS@|$LIB/tsimgfs|" "$ROOT/mount-scripts/tsimgfs@.service" | sed '/^# @TSIMGFS@/d' >"$COMMAND"
put "$COMMAND" "$UNITS/tsimgfs@.service"
rm -f -- "$COMMAND"
put_link "$LIB/tsimgfs" "$PREFIX/bin/tsimgfs"
for helper in mount umount; do
  put "$ROOT/mount-scripts/$helper.tsimgfs" "$LIB/mount-scripts/$helper.tsimgfs" 755
  # mount(8) looks for helpers nowhere else.
  [ "$SCOPE" != system ] || put_link "$LIB/mount-scripts/$helper.tsimgfs" "/sbin/$helper.fuse.tsimgfs"
done

INCOMPLETE=

say "Installed below $DESTDIR$PREFIX"
case :$PATH: in
  *":$PREFIX/bin:"*) ;;
  *) say "$PREFIX/bin is not in your PATH. For this shell: PATH=\"$PREFIX/bin:\$PATH\"" ;;
esac
if [ "$SCOPE" = system ]; then
  say "Try: mount -t fuse.tsimgfs IMAGE DIR; or, with /etc/tsimgfs/NAME.conf: systemctl daemon-reload && systemctl start tsimgfs@NAME"
else
  say "Try: tsimgfs mount IMAGE DIR; or, with ~/.config/tsimgfs/NAME.conf: systemctl --user daemon-reload && systemctl --user start tsimgfs@NAME"
fi
