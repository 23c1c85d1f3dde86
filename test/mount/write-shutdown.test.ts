// Every way in which a writable mount ends: what was written is in the image, and the image is clean.

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MARK, newMark } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { Mount, makeMountPoint, mounted } from "../support/mounted.ts";
import { MAIN } from "../support/repository.ts";
import { run, until } from "../support/run.ts";
import { casesOfTransport, MOUNT_COMMAND, TRANSPORT_NOTE } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import { type WriteImage, withWriteImage, writeKind } from "../support/write-images.ts";

const MIB = 2 ** 20;

const KINDS = casesOfTransport("ends", ["v3", "over-qcow2", "qed"] as const, 1);

/** Opens the device, says so, waits for a line, and then writes a file to it. */
const HOLDER = 'exec 3<>"$0"; echo open; read -r line; cat "$1" >&3 && echo written';

/** Noise to write, shorter than the device. */
async function makeNoise(image: WriteImage): Promise<string> {
  const noise = join(image.directory, "noise");
  await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=100000", "count=30", "status=none"]);
  return noise;
}

/** Writes the noise to the device, without fsync, and to the file that says what it must contain. */
async function writeNoise(image: WriteImage, device: string): Promise<void> {
  const noise = await makeNoise(image);
  for (const target of [device, image.expected]) {
    await run("dd", [`if=${noise}`, `of=${target}`, "bs=50000", "conv=notrunc", "status=none"]);
  }
}

const ENDS: readonly {
  readonly how: string;
  readonly end: (mount: Mount) => Promise<unknown>;
}[] = [
  { how: "tsimgfs umount", end: (mount) => tsimgfs(["umount", mount.mountPoint]) },
  { how: "umount", end: (mount) => run("umount", [mount.mountPoint]) },
  { how: "fusermount3 -u -z", end: (mount) => run("fusermount3", ["-u", "-z", mount.mountPoint]) },
  { how: "SIGTERM", end: async (mount) => process.kill(mount.daemonPid(), "SIGTERM") },
  { how: "SIGINT", end: async (mount) => process.kill(mount.daemonPid(), "SIGINT") },
];

describe.each(KINDS)("a writable mount of kind %s", (name) => {
  it.each(ENDS)("that ends by $how leaves a clean image", async ({ end }) => {
    await withWriteImage(writeKind(name), 4 * MIB, async (image) => {
      await mounted([image.path], {}, async (mount) => {
        await writeNoise(image, mount.device(image.path));
        await end(mount);
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      });
      await image.expectIntact();
    });
  });

  it("that is told to end takes writes until the last close", async () => {
    await withWriteImage(writeKind(name), 4 * MIB, async (image) => {
      const noise = await makeNoise(image);
      await mounted([image.path], {}, async (mount) => {
        const args = ["-c", HOLDER, mount.device(image.path), noise];
        await withProgram("sh", args, async (holder) => {
          await until("the device is open", () => holder.output.includes("open"));
          process.kill(mount.daemonPid(), "SIGTERM");
          await until("the mount is out of the tree", () => !mount.isMounted());
          holder.write("go\n");
          expect(await holder.end()).toBe(0);
          expect(holder.output).toContain("written");
        });
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      });
      await run("dd", [`if=${noise}`, `of=${image.expected}`, "conv=notrunc", "status=none"]);
      await image.expectIntact();
    });
  });

  it("that is in the foreground leaves a clean image at Ctrl-C", async () => {
    await withWriteImage(writeKind(name), 4 * MIB, async (image) => {
      const { mountPoint, ownDirectory } = await makeMountPoint("directory");
      const mount = new Mount(mountPoint, newMark(), undefined, ownDirectory);
      try {
        const args = [MAIN, ...MOUNT_COMMAND, "-f", image.path, mountPoint];
        await withProgram(
          process.execPath,
          args,
          async (program) => {
            await until(`mounted: ${program.output}`, () => mount.isMounted());
            await writeNoise(image, mount.device(image.path));
            program.kill("SIGINT");
            expect(await program.end()).toBe(0);
            expect(program.output).toMatch(TRANSPORT_NOTE);
          },
          { [MARK]: mount.mark },
        );
      } finally {
        await mount.stop();
      }
      await image.expectIntact();
    });
  });
});
