# Shared by quickstart.sh and test.sh: what a bare clone lacks is installed and built here. Sourced, not run.
# The caller has set ROOT to the clone's absolute path, and calls setup_cleanup from its EXIT trap.

SETUP_LOG=

say() { printf '%s\n' "$*"; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

setup_cleanup() {
  [ -z "$SETUP_LOG" ] || rm -f -- "$SETUP_LOG"
}

# quietly WHAT COMMAND...: the command's output is shown only if it fails.
quietly() {
  what=$1
  shift
  [ -n "$SETUP_LOG" ] || SETUP_LOG=$(mktemp "${TMPDIR:-/tmp}/tsimgfs-setup.XXXXXX")
  if ! "$@" >"$SETUP_LOG" 2>&1 </dev/null; then
    cat "$SETUP_LOG" >&2
    die "$what failed (its output is above)"
  fi
}

# Tools such as losetup and mke2fs are outside an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

has() { command -v "$1" >/dev/null 2>&1; }

# provided NAME: the command, or the shared library, is there.
provided() {
  case $1 in
    lib*.so.*) ldconfig -p | grep -q "[[:space:]]$1 " ;;
    *) has "$1" ;;
  esac
}

# The packages, out of COMMAND:PACKAGE and LIBRARY:PACKAGE pairs, whose command or library is not there.
missing_packages() {
  missing=
  for pair in "$@"; do
    provided "${pair%%:*}" && continue
    case " $missing " in
      *" ${pair#*:} "*) ;;
      *) missing="${missing:+$missing }${pair#*:}" ;;
    esac
  done
  printf '%s' "$missing"
}

# install_packages PAIR...: as root, or through sudo where it asks for no password.
install_packages() {
  packages=$(missing_packages "$@")
  [ -n "$packages" ] || return 0
  has apt-get || die "missing programs, and no apt-get to install them with; on Debian their packages are: $packages"
  if [ "$(id -u)" = 0 ]; then
    as_root=
  elif has sudo && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
  else
    die "first run as root: apt-get install -y --no-install-recommends $packages"
  fi
  say "Installing system packages: $packages"
  # $as_root and $packages are lists of plain words.
  # shellcheck disable=SC2086
  quietly "apt-get update" $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=120 update
  # shellcheck disable=SC2086
  quietly "apt-get install" $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $packages
  packages=$(missing_packages "$@")
  [ -z "$packages" ] || die "installed, but what is expected from these packages is not there: $packages"
}

require_node() {
  has node || die "Node.js 20.19 or later is needed, and there is no node here"
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    die "Node.js 20.19 or later is needed, this is $(node --version)"
  has npm || die "npm is needed, and there is none here (it comes with Node.js; Debian packages it apart, as npm)"
}

# The mode bits of /dev/fuse, or nothing if it is no device.
fuse_mode() {
  [ ! -c /dev/fuse ] || stat -c %a /dev/fuse
}

require_fuse() {
  [ -c /dev/fuse ] ||
    die "/dev/fuse: no such device; as root: modprobe fuse (in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN)"
  { [ -r /dev/fuse ] && [ -w /dev/fuse ]; } ||
    die "/dev/fuse: closed to you (mode $(fuse_mode)); as root: chmod 0666 /dev/fuse"
}

# npm ci, if node_modules is absent or older than the lock file.
install_modules() {
  installed=$ROOT/node_modules/.package-lock.json
  if [ -f "$installed" ] && [ -z "$(find "$ROOT/package-lock.json" -newer "$installed")" ]; then
    return 0
  fi
  require_writable "the npm packages that it needs are not installed, or older than package-lock.json"
  say "Installing npm packages"
  cd_run "npm ci" npm ci --include=dev --no-audit --no-fund --loglevel=error
}

# require_writable PROBLEM: the clone may be somebody else's.
require_writable() {
  [ -w "$ROOT" ] || die "$ROOT: $1, and you may not write there; its owner runs: sh mount-scripts/quickstart.sh; or use a clone of your own"
}

# True if dist/ is newer than what it is made from. Who ran npm run build has no stamp, but the first file of the build.
is_built() {
  stamp=$ROOT/dist/.built
  [ -f "$stamp" ] || stamp=$ROOT/dist/cli/main.js
  [ -f "$ROOT/dist/cli/main.js" ] &&
    [ -z "$(find "$ROOT/src" "$ROOT/package.json" "$ROOT/package-lock.json" "$ROOT"/tsconfig*.json "$ROOT"/mount-scripts/*.mjs -newer "$stamp" | head -n 1)" ]
}

# npm run build, if dist/ is absent or older than what it is made from.
build() {
  ! is_built || return 0
  require_writable "it is not built, or has changed since"
  say "Building"
  # The time of the start counts: a source changed during the build is newer than the result.
  stamp=$ROOT/dist/.built
  started=$(mktemp "${TMPDIR:-/tmp}/tsimgfs-built.XXXXXX")
  if ! (cd_run "npm run build" npm run build); then
    rm -f -- "$started"
    exit 1
  fi
  [ -f "$ROOT/dist/cli/main.js" ] || { rm -f -- "$started"; die "npm run build made no dist/cli/main.js"; }
  touch -r "$started" "$stamp"
  rm -f -- "$started"
}

# cd_run WHAT COMMAND...: quietly, in the clone; the caller's directory stays.
cd_run() {
  here=$PWD
  cd "$ROOT" || die "$ROOT: cannot change to it"
  quietly "$@"
  cd "$here" || die "$here: cannot change to it"
}
