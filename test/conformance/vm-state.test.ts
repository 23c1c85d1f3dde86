// The state of a machine in a snapshot: whatever is done to the image, it stays, bit for bit, where QEMU finds it.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AmendJob } from "../../src/block/amend-job.ts";
import type { Disk } from "../../src/block/disk.ts";
import type { Qcow2Amendment } from "../../src/formats/qcow2/amend/amend.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { amendment } from "../support/amendment.ts";
import { openLocal, USUAL_POLICY } from "../support/crash-engine.ts";
import { IMAGE_NAME } from "../support/crash-images.ts";
import { convertToRaw } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import {
  readVmState,
  VM_DISK_SIZE,
  VM_SNAPSHOT,
  VM_STATE_KINDS,
  type VmStateKind,
  vmStateImage,
} from "../support/vm-state.ts";
import { expectClean } from "../support/write-images.ts";

const RECIPE = {
  name: "VM state",
  group: "special",
  format: "qcow2",
  virtualSize: VM_DISK_SIZE,
  clusterSize: 4096,
} as const;
/** An image with VM state, and what can be done to it by us. */
class Machine {
  readonly path: string;
  readonly #directory: string;
  readonly #state: Record<string, string>;
  readonly #listed: string;

  private constructor(directory: string, state: Record<string, string>, listed: string) {
    this.path = join(directory, IMAGE_NAME);
    this.#directory = directory;
    this.#state = state;
    this.#listed = listed;
  }

  static async make(directory: string, kind: VmStateKind): Promise<Machine> {
    const path = join(directory, IMAGE_NAME);
    await writeFile(path, vmStateImage(kind));
    await expectClean(path);
    const listed = await listedLine(path);
    expect(listed).toMatch(kind.stateSize > 2 ** 32 ? / 5 GiB / : / 2\.38 MiB /);
    return new Machine(directory, readVmState(path), listed);
  }

  /** Opens the image for writing, as a mount does. */
  change(body: (disk: Disk) => void): void {
    const policy = { ...USUAL_POLICY, growable: true };
    const { disk, closeFiles } = openLocal(this.#directory, RECIPE, policy);
    try {
      body(disk);
      disk.close();
    } finally {
      closeFiles();
    }
  }

  amend(wanted: Partial<Qcow2Amendment>): void {
    const job = new AmendJob({
      path: this.path,
      amendment: amendment(wanted),
      size: undefined,
      open: { format: undefined, backingPolicy: undefined },
      warn: () => undefined,
    });
    try {
      while (!job.step());
    } finally {
      job.close();
    }
  }

  /** QEMU finds the same state, and nothing to complain about. */
  async expectKept(label: string): Promise<void> {
    await expectClean(this.path);
    expect(readVmState(this.path), label).toEqual(this.#state);
    expect(await listedLine(this.path), label).toBe(this.#listed);
  }

  /** The disk of the snapshot, or of now. */
  async disk(snapshot: readonly string[] = []): Promise<Buffer> {
    const raw = `${this.path}.raw`;
    await convertToRaw(this.path, "qcow2", raw, snapshot);
    return await readFile(raw);
  }

  async expectDisk(wanted: Buffer): Promise<void> {
    expect((await this.disk()).equals(wanted)).toBe(true);
  }
}

async function listedLine(path: string): Promise<string> {
  const { stdout } = await run("qemu-img", ["snapshot", "-l", path]);
  return stdout.split("\n").find((line) => line.includes(` ${VM_SNAPSHOT} `)) ?? "";
}

function writeAll(disk: Disk, value: number): void {
  const buffer = NativeBuffer.allocate(disk.virtualSize);
  buffer.bytes.fill(value);
  disk.write(0, disk.virtualSize, buffer, 0);
}

describe.each(VM_STATE_KINDS)("VM state $name", (kind) => {
  it("stays while the disk is written to and its snapshots change", async () => {
    await withScratch("vm-state", async (directory) => {
      const machine = await Machine.make(directory, kind);
      const whenRunning = await machine.disk(["-l", VM_SNAPSHOT]);
      machine.change((disk) => disk.changeSnapshots("create", "other"));
      await machine.expectKept("another snapshot");
      machine.change((disk) => writeAll(disk, 1));
      await machine.expectKept("a disk that is written to");
      machine.change((disk) => disk.changeSnapshots("apply", VM_SNAPSHOT));
      await machine.expectKept("the snapshot, applied");
      await machine.expectDisk(whenRunning);
      machine.change((disk) => {
        disk.changeSnapshots("create", "third");
        writeAll(disk, 2);
        disk.changeSnapshots("apply", "other");
        disk.changeSnapshots("delete", "other");
      });
      await machine.expectKept("other snapshots, applied and deleted");
      machine.change((disk) => disk.changeSnapshots("delete", "third"));
      await machine.expectKept("no other snapshot");
      expect((await machine.disk(["-l", VM_SNAPSHOT])).equals(whenRunning)).toBe(true);
      // What it took is free with it, and nothing else.
      machine.change((disk) => disk.changeSnapshots("delete", VM_SNAPSHOT));
      await expectClean(machine.path);
    });
  });

  it("stays while the image is amended", async () => {
    await withScratch("vm-state", async (directory) => {
      const machine = await Machine.make(directory, kind);
      const before = await machine.disk();
      machine.amend({ version: 3, lazyRefcounts: true, refcountBits: 64 });
      await machine.expectKept("wider refcounts");
      machine.amend({ refcountBits: kind.active ? 2 : 1, lazyRefcounts: false });
      await machine.expectKept("narrower refcounts");
      // QEMU refuses it, too: version 2 has no place that says how large it is.
      expect(() => machine.amend({ version: 2, refcountBits: 16 })).toThrow(/internal snapshots/);
      await machine.expectKept("a downgrade that is refused");
      await tsimgfs(["check", "-q", "-r", "all", machine.path]);
      await machine.expectKept("a check");
      await machine.expectDisk(before);
    });
  });

  it("stays while the disk has other sizes, where QEMU allows that", async () => {
    await withScratch("vm-state", async (directory) => {
      const machine = await Machine.make(directory, kind);
      const whenRunning = await machine.disk(["-l", VM_SNAPSHOT]);
      if (kind.version === 2) {
        expect(() => machine.change((disk) => disk.resize(2 * VM_DISK_SIZE))).toThrow(/snapshots/);
        const theirs = await attempt("qemu-img", [
          "resize",
          machine.path,
          String(2 * VM_DISK_SIZE),
        ]);
        expect(theirs.status).toBe(1);
        await machine.expectKept("a size that is refused");
        return;
      }
      machine.change((disk) => writeAll(disk, 1));
      let before = VM_DISK_SIZE;
      for (const size of [4 * VM_DISK_SIZE, VM_DISK_SIZE / 3, VM_DISK_SIZE]) {
        machine.change((disk) => disk.resize(size));
        await machine.expectKept(`${size} bytes`);
        const disk = await machine.disk();
        const added = disk.subarray(Math.min(before, size));
        expect(added.equals(Buffer.alloc(added.length)), `${size} bytes: what is new`).toBe(true);
        before = size;
        machine.change((disk) => writeAll(disk, 3));
        await machine.expectKept(`${size} bytes that are written to`);
      }
      machine.change((disk) => disk.changeSnapshots("apply", VM_SNAPSHOT));
      await machine.expectKept("the snapshot, applied");
      await machine.expectDisk(whenRunning);
    });
  });
});
