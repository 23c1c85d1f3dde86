// The state of a machine in a snapshot, while a mount writes to the disk, changes its size and its snapshots.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { mounted } from "../support/mounted.ts";
import { convertToRaw } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import {
  readVmState,
  VM_DISK_SIZE,
  VM_SNAPSHOT,
  VM_STATE_KINDS,
  vmStateImage,
} from "../support/vm-state.ts";
import { expectClean } from "../support/write-images.ts";

async function fill(device: string, size: number): Promise<void> {
  const to = [`of=${device}`, "bs=64k", `count=${size}`, "iflag=count_bytes", "conv=notrunc,fsync"];
  await run("dd", ["if=/dev/urandom", ...to, "status=none"]);
}

/** In the quick form: the one that is grown over, and one in a version that cannot grow. */
const KINDS = casesOfTransport("vm-state", byScale(VM_STATE_KINDS.slice(2), VM_STATE_KINDS), 1);

describe("the state of a machine in a snapshot", () => {
  it.each(KINDS)("stays while a mount works: $name", async (kind) => {
    await withScratch("vm-state", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await writeFile(image, vmStateImage(kind));
      const state = readVmState(image);
      const before = join(directory, "before.raw");
      await convertToRaw(image, "qcow2", before, ["-l", VM_SNAPSHOT]);
      const canGrow = kind.version !== 2;
      const size = canGrow ? 2 * VM_DISK_SIZE : VM_DISK_SIZE;
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await tsimgfs(["snapshot", "-c", "other", device]);
        if (canGrow) await tsimgfs(["resize", device, String(size)]);
        await fill(device, size);
        await tsimgfs(["snapshot", "-a", VM_SNAPSHOT, device]);
        await run("cmp", [device, before]);
        await fill(device, VM_DISK_SIZE);
        await tsimgfs(["snapshot", "-d", "other", device]);
        await run("cmp", [mount.snapshot(image, VM_SNAPSHOT), before]);
      });
      await expectClean(image);
      expect(readVmState(image)).toEqual(state);
    });
  });
});
