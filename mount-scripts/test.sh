#!/bin/sh
# Everything that must pass, from a bare clone: system packages, npm packages, build, lint and types, tests.
# usage: mount-scripts/test.sh
# The last line of output is the test runner's "N passed, N failed".
set -eu

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$ROOT/mount-scripts/setup.sh"

trap setup_cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

[ $# = 0 ] || die "takes no arguments (one test file: npx vitest run test/…)"

# npm's advice about its own version would come after the last line.
export NPM_CONFIG_UPDATE_NOTIFIER=false

require_node
install_packages \
  zstd:zstd qemu-img:qemu-utils qemu-io:qemu-utils qemu-storage-daemon:qemu-system-common \
  fusermount3:fuse3 libfuse.so.2:libfuse2 fio:fio jq:jq getfattr:attr \
  mke2fs:e2fsprogs debugfs:e2fsprogs fuse2fs:fuse2fs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs \
  mcopy:mtools mkfs.vfat:dosfstools \
  losetup:mount mount:mount setpriv:util-linux taskset:util-linux fallocate:util-linux runuser:util-linux \
  sfdisk:fdisk unshare:util-linux findmnt:util-linux systemd-analyze:systemd ps:procps cmp:diffutils \
  bash:bash zsh:zsh fish:fish man:man-db groff:groff-base mandoc:mandoc

# Half of the mount tests run as an ordinary user; minimal machines have /dev/fuse for root alone.
if [ "$(id -u)" = 0 ] && [ -n "$(fuse_mode)" ] && [ "$(fuse_mode)" != 666 ]; then
  say "Opening /dev/fuse to ordinary users (it was mode $(fuse_mode))"
  chmod 0666 /dev/fuse || die "/dev/fuse: cannot be made accessible to ordinary users"
fi
require_fuse

install_modules
build

cd "$ROOT"
say "Checking"
npm --silent run check </dev/null || die "npm run check failed (its output is above)"
say "Testing"
# --silent: npm adds nothing after the summary, also when tests fail. The status is the tests'.
npm --silent test </dev/null
