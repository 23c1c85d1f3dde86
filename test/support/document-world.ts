// Where the commands of README are run as they stand: a clone of the repository with a few images beside it, in mount and
// process namespaces whose /mnt, /run, /usr/local, /sbin and /etc/fstab are their own. When the first process ends, so do all
// daemons and mounts that are left.

import { cp, mkdir, mkdtemp, readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { MAIN, REPOSITORY } from "./repository.ts";
import { run } from "./run.ts";
import type { ShownCommand } from "./shell-blocks.ts";
import { WITHOUT_OTHERS } from "./without-others.ts";

/** What the images of README have: partition 1 is FAT, 2 is ext4, both with the files that it shows. */
const MAKE_IMAGES = `
set -eu
mkdir -p root/etc root/var/log
echo web1 >root/etc/hostname
printf '%s\\n' 'LABEL=root / ext4 defaults 0 1' 'LABEL=old-disk /srv ext4 defaults 0 2' >root/etc/fstab
seq 200000 >root/var/log/syslog
echo 'configfile /boot/grub.cfg' >grub.cfg
mke2fs -q -t ext4 -L root -d root root.raw 40M
mkfs.vfat -n EFI -C efi.raw 8192 >/dev/null
mcopy -i efi.raw grub.cfg ::grub.cfg
truncate -s 64M disk.raw
printf '%s\\n' 'label: gpt' 'start=2048, size=16384, type=U' 'size=81920, type=L' | sfdisk -q disk.raw
dd if=efi.raw of=disk.raw bs=1M seek=1 conv=notrunc status=none
dd if=root.raw of=disk.raw bs=1M seek=9 conv=notrunc status=none
qemu-img convert -O qcow2 disk.raw vm.qcow2
cp vm.qcow2 base.qcow2
`;

/** Runs "$COMMANDS"/1, 2 … in one shell; what each says is in "$SAID". The first that fails ends it. */
const RUN = `
set -eu
cd "$WORLD"
${WITHOUT_OTHERS}own() { # own DIRECTORY NAME: instead of it, links to all that it has; what is put there stays here
  real=$(readlink -f "$1")
  mkdir "$WORLD/.$2" "$WORLD/.$2.real"
  mount --bind "$real" "$WORLD/.$2.real"
  cp -rs "$WORLD/.$2.real/." "$WORLD/.$2"
  mount --bind "$WORLD/.$2" "$real"
}
own /sbin sbin
own /usr/local local
rm -f /sbin/*mount.fuse.tsimgfs /usr/local/bin/tsimgfs
cp /etc/fstab .fstab
mount --bind .fstab /etc/fstab
mount -t tmpfs tmpfs /run
# What is mounted or kept below /mnt stays there: this clone may be.
mkdir .mnt
mount --rbind /mnt .mnt
mount -t tmpfs tmpfs /mnt
mkdir /mnt/images /mnt/root
for entry in .mnt/*/; do
  place=/mnt/$(basename "$entry")
  if [ -d "$entry" ] && [ ! -e "$place" ]; then
    mkdir "$place"
    mount --rbind "$entry" "$place"
  fi
done
# Loop devices are the machine's: those on files of mounts in here go with them.
detach_loops() {
  mine=" $(awk '/ - fuse\\.tsimgfs /{ printf "%s ", $3 }' /proc/self/mountinfo)"
  losetup --list --noheadings --output NAME,BACK-MAJ:MIN | while read -r device file_system; do
    case $mine in *" $file_system "*) umount -q "$device" || :; losetup --detach "$device" ;; esac
  done
}
trap detach_loops EXIT
set +eu
for command in $COMMANDS; do
  number=\${command##*/}
  . "$command" >"$SAID/$number" 2>&1 </dev/null || {
    echo "exit status $? of: $(cat "$command")"
    cat "$SAID/$number"
    exit 1
  } >&2
done
`;

/** A clone as it is after a build, with what is needed to install it, and images. */
export async function makeClone(directory: string): Promise<void> {
  await run("sh", ["-c", MAKE_IMAGES], { cwd: directory });
  const clone = join(directory, "clone");
  await mkdir(join(clone, "src"), { recursive: true });
  for (const name of ["mount-scripts", "package.json", "package-lock.json", "LICENSE"]) {
    await cp(join(REPOSITORY, name), join(clone, name), { recursive: true });
  }
  await run("mv", ["vm.qcow2", "base.qcow2", clone], { cwd: directory });
  // Newer than what they are made from: nothing is installed or built anew.
  const modules = join(clone, "node_modules");
  await mkdir(modules);
  for (const name of await readdir(join(REPOSITORY, "node_modules"))) {
    if (name === ".package-lock.json") await writeFile(join(modules, name), "{}");
    else await symlink(join(REPOSITORY, "node_modules", name), join(modules, name));
  }
  await cp(dirname(dirname(MAIN)), join(clone, "dist"), { recursive: true });
  await writeFile(join(clone, "dist/.built"), "");
  const programs = join(directory, "bin");
  await mkdir(programs);
  const program = `#!/bin/sh\nexec "${process.execPath}" "${MAIN}" "$@"\n`;
  await writeFile(join(programs, "tsimgfs"), program, { mode: 0o755 });
}

/**
 * Runs commands, one after the other in one shell, in a fresh copy of a clone.
 *
 * @param directory of `makeClone`
 * @param env added to the environment
 * @returns what each of them said, on standard output and standard error
 */
export async function runShown(
  directory: string,
  commands: readonly ShownCommand[],
  env: Readonly<Record<string, string>>,
): Promise<string[]> {
  const scratch = await mkdtemp(join(directory, "world-"));
  const world = join(scratch, "clone");
  await run("cp", ["-a", join(directory, "clone"), world]);
  const said = join(scratch, "said");
  const temporary = join(scratch, "tmp");
  for (const name of [said, temporary]) await mkdir(name);
  const paths: string[] = [];
  for (const [index, { text }] of commands.entries()) {
    const path = join(scratch, String(index));
    await writeFile(path, `${text}\n`);
    paths.push(path);
  }
  const namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
  const system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  await run("unshare", [...namespaces, "sh", "-c", RUN], {
    env: {
      ...env,
      WORLD: world,
      COMMANDS: paths.join(" "),
      SAID: said,
      TMPDIR: temporary,
      PATH: `${system}:${join(directory, "bin")}:${dirname(process.execPath)}`,
    },
    timeoutMs: 120_000,
  });
  return await Promise.all(paths.map((_, index) => readFile(join(said, String(index)), "utf8")));
}
