/** A device that is written to by requests, and what qemu-img says of its image afterwards. */

import fs from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import type { WritePolicy } from "../../../src/block/write-policy.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { convertToRaw } from "../../support/qemu.ts";
import { run } from "../../support/run.ts";
import { type SampleTree, withTree } from "../tree/sample-tree.ts";
import { Caller } from "./call.ts";

export const ROOT = 1;
export const DEVICE = 16;
export const STATS = 17;
export const CLUSTER = 4096;
/** The last cluster is cut short. */
export const SIZE = 16 * CLUSTER + 512;

export const POLICY: WritePolicy = {
  copyOnRead: true,
  detectZeroes: "on",
  discard: "unmap",
  growable: false,
};
export const GROWABLE: WritePolicy = { ...POLICY, growable: true };

/** Bits of fuse_setattr_in.valid. */
export const FATTR = { mode: 1, uid: 2, gid: 4, size: 8, atime: 16, mtime: 32, fh: 64 } as const;

interface Sample extends SampleTree {
  readonly caller: Caller;
  /** The whole disk, as qemu-img converts it; the device is not used any more. */
  readonly converted: () => Promise<Buffer>;
}

const OWNERSHIP = { uid: 0, gid: 0, umask: undefined } as const;
const IMAGE = "disk.qcow2";

function diskImage(): Buffer {
  return qcow2Bytes({ clusterBits: 12, virtualSize: SIZE });
}

export async function withDevice(
  body: (sample: Sample) => void | Promise<void>,
  policy: WritePolicy = POLICY,
): Promise<void> {
  await withTree(
    [[IMAGE, diskImage()]],
    async (sample) => {
      const path = join(sample.directory, IMAGE);
      await body({
        ...sample,
        caller: new Caller({ tree: sample.tree, ownership: OWNERSHIP }, 2 * 65536),
        converted: async () => {
          sample.endWriting(0);
          await run("qemu-img", ["check", "-q", "-f", "qcow2", "-U", path]);
          const out = join(sample.directory, "disk.flat");
          await convertToRaw(path, "qcow2", out, ["-U"]);
          return fs.readFileSync(out);
        },
      });
    },
    { policy },
  );
}

export async function withReadOnlyDevice(body: (caller: Caller) => void): Promise<void> {
  await withTree([[IMAGE, diskImage()]], ({ tree }) => {
    body(new Caller({ tree, ownership: OWNERSHIP }));
  });
}

/** `size` of the fuse_attr that a GETATTR or SETATTR is answered with. */
export function sizeOfReply(payload: Buffer): number {
  expect(payload).toHaveLength(16 + 88);
  return Number(payload.readBigUInt64LE(16 + 8));
}

export function sizeOf(caller: Caller): number {
  return sizeOfReply(caller.call(OPCODE.getattr, DEVICE).payload);
}
