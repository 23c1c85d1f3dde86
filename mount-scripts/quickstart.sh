#!/bin/sh
# From a bare clone to a mounted image: installs what is missing, builds, mounts, prints what to type next.
# usage: mount-scripts/quickstart.sh [IMAGE [MOUNTPOINT]]
# Without arguments: a small demonstration in a directory of its own. Without MOUNTPOINT: a new directory.
set -eu

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$ROOT/mount-scripts/setup.sh"

MAIN=$ROOT/dist/cli/main.js
MADE=    # a directory that this run made, removed again if the run fails
DEMO=    # the demonstration's directory, empty if there is none
MOUNTED= # where this run mounts, until the run has succeeded

# Take down what this run has made; false if something of it is still there.
take_down() {
  if [ -n "$MOUNTED" ] && is_mounted "$MOUNTED"; then
    node "$MAIN" umount "$MOUNTED" >/dev/null 2>&1 || return 1
  fi
  # rmdir and the -xdev of find: nothing below a mount that is still there is touched.
  [ -z "$DEMO" ] || find "$DEMO" -xdev -depth -delete 2>/dev/null || :
  [ -z "$MADE" ] || rmdir -- "$MADE" 2>/dev/null || :
  [ ! -e "${DEMO:-$MADE}" ]
}

cleanup() {
  status=$?
  trap - EXIT
  # Who is impatient does not keep this from being done.
  trap '' HUP INT TERM
  setup_cleanup
  tries=0
  # The daemon of a mount command that was stopped may have mounted, and ends that by itself.
  while [ "$status" != 0 ] && ! take_down && [ "$tries" != 20 ]; do
    tries=$((tries + 1))
    sleep 0.2
  done
  exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A word as it can be pasted into a shell.
quote() {
  case $1 in
    *[!A-Za-z0-9_./:@%+,=-]* | '') printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
  esac
}

absolute() {
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

# is_mounted PATH: true if a file system is mounted just there.
is_mounted() {
  node -e 'const [, path] = process.argv;
    const { readFileSync } = require("node:fs");
    const octal = (text) => text.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(parseInt(digits, 8)));
    const bytes = Buffer.from(path, "utf8").toString("latin1");
    const lines = readFileSync("/proc/self/mountinfo", "latin1").split("\n");
    process.exit(lines.some((line) => / - fuse/.test(line) && octal(line.split(" ")[4] ?? "") === bytes) ? 0 : 1);' "$1"
}

# shows MOUNTPOINT IMAGE: true if the mount there has IMAGE as a device.
shows() {
  # shellcheck disable=SC2016
  node -e 'const [, mount, image] = process.argv;
    const { readFileSync, readdirSync, realpathSync, statSync } = require("node:fs");
    try {
      if (!statSync(mount).isDirectory()) process.exit(1);
      const stats = readdirSync(mount).filter((name) => name.endsWith(".stats.json"));
      const names = stats.map((name) => JSON.parse(readFileSync(`${mount}/${name}`, "utf8")).filename);
      process.exit(names.some((name) => realpathSync(name) === realpathSync(image)) ? 0 : 1);
    } catch {
      process.exit(1);
    }' "$1" "$2"
}

make_demonstration() {
  DEMO=$(mktemp -d "${TMPDIR:-/tmp}/tsimgfs-demo.XXXXXX")
  DEMO=$(CDPATH='' cd -- "$DEMO" && pwd -P)
  mkdir "$DEMO/files" "$DEMO/files/notes" "$DEMO/mnt" "$DEMO/root"
  say "Hello from inside a virtual disk." >"$DEMO/files/hello.txt"
  say "This file lies in an ext4 file system, in base.qcow2, seen through demo.qcow2." >"$DEMO/files/notes/where.txt"
  quietly "mke2fs" mke2fs -q -t ext4 -L demo -d "$DEMO/files" "$DEMO/base.raw" 64M
  quietly "qemu-img convert" qemu-img convert -O qcow2 "$DEMO/base.raw" "$DEMO/base.qcow2"
  quietly "qemu-img create" qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$DEMO/demo.qcow2"
  rm -r -- "$DEMO/files" "$DEMO/base.raw"
  IMAGE=$DEMO/demo.qcow2
  MOUNTPOINT=$DEMO/mnt
}

print_next() {
  tsimgfs="node $(quote "$MAIN")"
  mount_q=$(quote "$MOUNTPOINT")
  if [ -f "$MOUNTPOINT" ]; then
    device=$MOUNTPOINT
    stats=
  else
    device=
    for entry in "$MOUNTPOINT"/*.raw; do
      [ -f "$entry" ] && device=$entry && break
    done
    [ -n "$device" ] || die "$MOUNTPOINT: no device in the mount"
    stats=${device%.raw}.stats.json
  fi
  device_q=$(quote "$device")

  say ""
  say "Try:"
  say "  ls -l $mount_q"
  if [ -n "$DEMO" ]; then
    # Not on an ordinary user's PATH.
    debugfs=debugfs
    [ "$(id -u)" = 0 ] || debugfs=$(command -v debugfs)
    say "  $debugfs -R 'cat /hello.txt' $device_q"
    say "  cp --sparse=always $device_q $(quote "$DEMO/copy.raw")"
    root_q=$(quote "$DEMO/root")
    [ "$(id -u)" != 0 ] || say "  mount -o loop $device_q $root_q && date >$root_q/now.txt && ls -l $root_q; umount $root_q"
  else
    say "  dd if=$device_q bs=1M count=64 | sha256sum"
    say "  cp --sparse=always $device_q copy.raw"
    [ "$(id -u)" != 0 ] || say "  losetup -r -P --find --show $device_q"
  fi
  [ -z "$stats" ] || say "  cat $(quote "$stats")"
  say ""
  if [ -z "$DEMO" ] && [ "$(id -u)" = 0 ]; then
    say "When done (a loop device first: losetup -d):"
  else
    say "When done:"
  fi
  if [ -n "$DEMO" ]; then
    say "  $tsimgfs umount $mount_q && rm -r $(quote "$DEMO")"
  elif [ -n "$MADE" ]; then
    say "  $tsimgfs umount $mount_q && rmdir $mount_q"
  else
    say "  $tsimgfs umount $mount_q"
  fi
}

case ${1-} in
  -h | --help)
    sed -n '2,4s/^# //p' "$0"
    exit 0
    ;;
  -*) die "unknown option $1 (usage: quickstart.sh [IMAGE [MOUNTPOINT]])" ;;
esac
[ $# -le 2 ] || die "too many arguments (usage: quickstart.sh [IMAGE [MOUNTPOINT]])"

if [ $# -ge 1 ]; then
  IMAGE=$(absolute "$1")
  [ -e "$IMAGE" ] || die "$1: no such file"
  [ ! -d "$IMAGE" ] || die "$1: is a directory, not an image"
  [ -r "$IMAGE" ] || die "$1: not readable by you"
fi

require_node
if [ $# = 0 ]; then
  install_packages fusermount3:fuse3 qemu-img:qemu-utils mke2fs:e2fsprogs debugfs:e2fsprogs
else
  install_packages fusermount3:fuse3
fi
require_fuse
install_modules
build

if [ $# = 0 ]; then
  make_demonstration
elif [ $# = 1 ]; then
  name=${IMAGE##*/}
  MADE=$(mktemp -d "${TMPDIR:-/tmp}/tsimgfs-${name%.*}.XXXXXX")
  MADE=$(CDPATH='' cd -- "$MADE" && pwd -P)
  MOUNTPOINT=$MADE
else
  MOUNTPOINT=$(absolute "$2")
  if [ ! -e "$MOUNTPOINT" ] && ! is_mounted "$MOUNTPOINT"; then
    mkdir -p -- "$MOUNTPOINT"
    MADE=$MOUNTPOINT
  fi
  [ ! -d "$MOUNTPOINT" ] || MOUNTPOINT=$(CDPATH='' cd -- "$MOUNTPOINT" && pwd -P)
  [ -z "$MADE" ] || MADE=$MOUNTPOINT
  if shows "$MOUNTPOINT" "$IMAGE"; then
    say "$1 is mounted at $MOUNTPOINT already."
    print_next
    exit 0
  fi
fi

# Nothing is written to an image before something writes to its device.
HOW=
# What others have mounted there stays.
is_mounted "$MOUNTPOINT" || MOUNTED=$MOUNTPOINT
if [ -w "$IMAGE" ]; then
  node "$MAIN" mount "$IMAGE" "$MOUNTPOINT"
else
  HOW=", read-only since you may not write to the image,"
  node "$MAIN" mount -r "$IMAGE" "$MOUNTPOINT"
fi
MOUNTED=$MOUNTPOINT

if [ -n "$DEMO" ]; then
  say "A demonstration, in $DEMO:"
  say "  base.qcow2  a disk with an ext4 file system and a few files"
  say "  demo.qcow2  an overlay with base.qcow2 as its backing file"
  say "demo.qcow2 is mounted at $MOUNTPOINT; what you write goes to the overlay"
else
  say "$1 is mounted$HOW at $MOUNTPOINT"
fi
print_next
MOUNTED=
