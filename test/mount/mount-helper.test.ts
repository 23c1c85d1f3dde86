// mount(8), umount(8) and fstab with the helpers that install.sh puts in /sbin. All of it in a mount namespace whose
// /sbin and /etc/fstab are the test's own: the machine's are not touched.

import { chmod, copyFile, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { IS_ROOT, ORDINARY_USER } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { MAIN, REPOSITORY } from "../support/repository.ts";
import { attempt, type RunResult, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { WITHOUT_OTHERS } from "../support/without-others.ts";
import { expectClean } from "../support/write-images.ts";

const HELPERS = join(REPOSITORY, "mount-scripts");

/** Links to all programs of /sbin, in whose place they are put, and an fstab of two lines. */
const NAMESPACE = `
set -eu
${WITHOUT_OTHERS}
cd "$SCRATCH"
sbin=$(readlink -f /sbin)
mkdir -p programs sbin
mount --bind "$sbin" programs
ln -sf "$SCRATCH"/programs/* sbin
mount --bind sbin "$sbin"
printf '%s\\n' "$IMAGE $TARGET fuse.tsimgfs noauto,user,umask=022,x-systemd.automount,_netdev,nofail 0 0" >fstab
mount --bind fstab /etc/fstab
sh "$HELPERS/install.sh" --system --prefix "$SCRATCH/prefix" >/dev/null
as_user() { runuser -u nobody -- "$@"; }
`;

describe.skipIf(!IS_ROOT)("mount(8) (needs root)", () => {
  let directory = "";
  let image = "";
  let target = "";

  beforeAll(async () => {
    directory = await makeScratch("mount-helper");
    image = join(directory, "disk.qcow2");
    target = join(directory, "target");
    await mkdir(target);
    await createImage(image, "qcow2", { size: 2 ** 24 });
    await qemuIo(image, "qcow2", ["write -P 0x41 0 64k"]);
    await run("chown", [`${ORDINARY_USER.uid}:${ORDINARY_USER.gid}`, image, target]);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** Runs a script where the helpers are installed. */
  function inNamespace(script: string): Promise<RunResult> {
    const env = { SCRATCH: directory, IMAGE: image, TARGET: target, HELPERS };
    return run("unshare", ["--mount", "sh", "-c", NAMESPACE + script], { env });
  }

  it("mounts an image with options of its own, of tsimgfs, and of others", async () => {
    const { stdout } = await inNamespace(`
      mount -t fuse.tsimgfs "$IMAGE" "$TARGET" -o ro,allow_other,threads=2,noatime,nofail
      findmnt --noheadings --output SOURCE,FSTYPE,OPTIONS "$TARGET"
      cat "$TARGET/disk.stats.json" | jq '."read-only"'
      umount "$TARGET"
      qemu-img check -q "$IMAGE"
    `);
    expect(stdout).toMatch(/^\S+disk\.qcow2 fuse\.tsimgfs ro,.*allow_other.*\ntrue\n$/);
  });

  it("lets umount return when the image is closed and unlocked, with uhelper, also with -t", async () => {
    await inNamespace(`
      for kind in "" "-t fuse.tsimgfs"; do
        mount -t fuse.tsimgfs "$IMAGE" "$TARGET" -o uhelper=fuse.tsimgfs
        dd if=/dev/urandom of="$TARGET/disk.raw" bs=64k seek=8 count=8 conv=notrunc status=none
        umount $kind "$TARGET"
        qemu-io -f qcow2 -c 'read -P 0x41 0 64k' "$IMAGE" | grep -q '65536/65536'
        ! findmnt "$TARGET"
      done
    `);
    await expectClean(image);
  });

  it("mounts and unmounts a line of fstab, for root and for an ordinary user", async () => {
    const { stdout } = await inNamespace(`
      mount "$TARGET"
      umount "$TARGET"
      as_user mount "$TARGET"
      as_user stat -c '%U %a' "$TARGET/disk.raw"
      findmnt --noheadings --output OPTIONS "$TARGET"
      as_user umount "$TARGET"
      ! findmnt "$TARGET"
      mount "$IMAGE"
      umount "$IMAGE"
    `);
    expect(stdout).toMatch(/^nobody 644\nrw,nosuid,nodev,.*user_id=65534,/);
  });

  it("tells what is wrong, and mounts nothing", async () => {
    const { stderr } = await inNamespace(`
      ! mount -t fuse.tsimgfs "$IMAGE" "$TARGET" -o bogus
      ! mount -t fuse.tsimgfs "$IMAGE.missing" "$TARGET"
      ! findmnt "$TARGET"
      mount -s -t fuse.tsimgfs "$IMAGE" "$TARGET" -o bogus
      umount -l "$TARGET"
    `);
    expect(stderr).toMatch(/^mount\.fuse\.tsimgfs: -o bogus: unknown option; there are ro, .*\n/);
    expect(stderr).toMatch(/^tsimgfs: .*missing: no such file/m);
  });

  it("is left as it was by install.sh --uninstall", async () => {
    const { stdout } = await inNamespace(`
      ls sbin | grep tsimgfs
      sh "$HELPERS/install.sh" --uninstall --prefix "$SCRATCH/prefix"
      ls sbin | grep -c tsimgfs || :
      ! ls -d prefix
    `);
    expect(stdout).toMatch(/^mount\.fuse\.tsimgfs\numount\.fuse\.tsimgfs\nRemoved .*\n0\n$/);
  });
});

describe("the helper of mount(8)", () => {
  let directory = "";
  let helper = "";

  beforeAll(async () => {
    directory = await makeScratch("helper-arguments");
    await mkdir(join(directory, "mount-scripts"));
    helper = join(directory, "mount-scripts/mount.tsimgfs");
    await copyFile(join(HELPERS, "mount.tsimgfs"), helper);
    // In the place of the installed command, and tells how it is called.
    const command = join(directory, "tsimgfs");
    await writeFile(command, '#!/bin/sh\nprintf "<%s>" "$@"\n');
    await chmod(command, 0o755);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  const called = async (...args: readonly string[]): Promise<string> =>
    (await run("sh", [helper, "/i m/a*.qcow2", "/m", ...args])).stdout;

  it.each([
    ["nothing", [], ""],
    ["rw", ["-o", "rw"], "<-o><rw>"],
    ["noauto,user,dev,suid,exec,_netdev,nofail,x-systemd.automount,x-a=b,noatime", [], ""],
    ["ro,allow_other,uid=5", [], "<-o><ro,allow_other,uid=5>"],
    [
      "format=raw,threads=3,detect_zeroes=off",
      [],
      "<--format=raw><--threads=3><--detect-zeroes=off>",
    ],
    ["discard,no_copy_on_read,growable", [], "<--discard=unmap><--no-copy-on-read><--growable>"],
    ["nodiscard,backing_policy=none", [], "<--discard=ignore><--backing-policy=none>"],
    ["stream=20M,force_share,log_file=/a b", [], "<--stream=20M><--force-share><--log-file=/a b>"],
    [
      "detect-zeroes=off,copy_on_read=off,copy-on-read,copy_on_read=on",
      [],
      "<--detect-zeroes=off><--no-copy-on-read>",
    ],
    [
      "secret=/a b=c,backing_secret=-,backing-secret=x",
      [],
      "<--secret=/a b=c><--backing-secret=-><--backing-secret=x>",
    ],
    ["fsname=a*b,bogus", ["-s"], "<-o><fsname=a*b>"],
  ])("understands %s, with %j", async (options, more, wanted) => {
    const list = options === "nothing" ? [] : ["-n", "-v", "-t", "fuse.tsimgfs", "-o", options];
    const args = options === "rw" ? more : [...list, ...more];
    expect(await called(...args)).toBe(`<mount>${wanted}<--></i m/a*.qcow2></m>`);
  });

  it("takes each option of tsimgfs mount, with _ and with -, and tells them", async () => {
    const { stdout: help } = await run(process.execPath, [MAIN, "help", "mount"]);
    const { stdout: brief } = await run(process.execPath, [MAIN, "mount", "--help"]);
    const long = [...help.matchAll(/^ {2}(?:-\w, )?--([\w-]+)( [<[])?/gm)]
      .map(([, name = "", valued]) => ({ name, valued: valued !== undefined }))
      .filter(({ name }) => !["options", "foreground", "help"].includes(name));
    const [afterO = ""] = /--options <list>[^-]*/.exec(brief) ?? [];
    const short = [...afterO.matchAll(/\b([a-z_]+)(=)?(?=,|\n|$)/g)].map(([, name = ""]) => name);
    expect(long.length).toBeGreaterThan(15);
    expect(short).toContain("read_ahead_kb");
    for (const { name, valued } of long) {
      const wanted = valued ? `<--${name}=v>` : `<--${name}>`;
      for (const spelling of [name, name.replaceAll("-", "_")]) {
        const option = valued ? `${spelling}=v` : spelling;
        expect(await called("-o", option)).toBe(`<mount>${wanted}<--></i m/a*.qcow2></m>`);
      }
    }
    const refused = await attempt("sh", [helper, "/image", "/m", "-o", "ro,bogus"]);
    expect(refused.status).toBe(1);
    const [, list = ""] =
      /^mount\.fuse\.tsimgfs: -o bogus: unknown option; there are (.*)\n$/.exec(refused.stderr) ??
      [];
    const known = [...short, ...long.map(({ name }) => name), "default_permissions"];
    expect(list.split(", ").sort()).toEqual(known.sort());
  });

  it("does nothing with -f", async () => {
    expect(await called("-f", "-o", "ro")).toBe("");
  });

  it.each([
    ["-o", "remount,ro"],
    ["-N", "ns"],
    ["-o", "fsname=a*b,bogus"],
    ["-o", "growable=on"],
    ["-o", "secret"],
    ["-x", "1"],
    ["more", "arguments"],
  ])("refuses %s %s", async (...args) => {
    const { status, stderr } = await attempt("sh", [helper, "/image", "/m", ...args]);
    expect(status).toBe(1);
    expect(stderr).toMatch(/mount\.fuse\.tsimgfs: /);
  });
});
